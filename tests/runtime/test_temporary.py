"""What is changed for a while is as it was before, whatever happened."""

from types import SimpleNamespace

import pytest
from torch import nn

from gpt2_hf.runtime.temporary import evaluation_mode, temporarily


def test_attributes_are_put_back_after_an_error():
    """All of them, also one that was changed again inside."""
    target = SimpleNamespace(first=1, second=2, third=3)
    with pytest.raises(KeyError), temporarily(target, first=10, second=20):
        assert (target.first, target.second, target.third) == (10, 20, 3)
        target.second = 200
        raise KeyError
    assert vars(target) == {"first": 1, "second": 2, "third": 3}


@pytest.mark.parametrize("is_training", [True, False])
def test_a_model_is_in_its_mode_again_after_an_error(is_training):
    """Whichever that was."""
    model = nn.Dropout().train(is_training)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training
        raise KeyError
    assert model.training is is_training
