"""What is otherwise for a while: attributes of an object, the mode of a model."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def temporarily(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of an object these values, and afterwards those that they had before, also after an error."""
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """A model without dropout; afterwards each of its modules is in the mode that it was in, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        model.train(modes[0][1])  # which a class may have overridden, to take back what its `eval` has done
        for module, training in modes:
            module.training = training
