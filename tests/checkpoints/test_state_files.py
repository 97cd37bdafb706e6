"""Training state is stored without pickle and comes back as it was."""

import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.testing._internal.two_tensor import TwoTensor

from gpt2_hf.checkpoints.state_files import check_storable, load_state, save_state


def test_nested_state_round_trips(tmp_path):
    """Dicts with integer keys, tuples, lists, tensors, arrays and plain values come back equal."""
    state = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3, dtype=torch.float64)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0, 1], "fused": True, "name": None}],
        "numpy": np.arange(5, dtype=np.uint32),
        "empty": {},
        "dtype": torch.bfloat16,
    }
    save_state(state, tmp_path / "s.safetensors")
    loaded = load_state(tmp_path / "s.safetensors")
    assert torch.equal(loaded["state"][0]["exp_avg"], state["state"][0]["exp_avg"])
    assert loaded["param_groups"] == state["param_groups"]
    assert isinstance(loaded["param_groups"][0]["betas"], tuple)
    assert loaded["numpy"].dtype == np.uint32 and (loaded["numpy"] == state["numpy"]).all()
    assert loaded["empty"] == {}
    assert loaded["dtype"] is torch.bfloat16


def test_random_generators_go_on_where_they_were(tmp_path):
    """The states of Python's, numpy's and torch's generators survive the file."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    save_state(state, tmp_path / "rng.safetensors")
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    loaded = load_state(tmp_path / "rng.safetensors")
    random.setstate(loaded["python"])
    np.random.set_state(loaded["numpy"])
    torch.set_rng_state(loaded["torch"])
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_tensors_that_share_memory_are_stored(tmp_path):
    """Two views of one tensor are written as two tensors."""
    base = torch.arange(6.0)
    save_state({"a": base[:3], "b": base}, tmp_path / "s.safetensors")
    assert torch.equal(load_state(tmp_path / "s.safetensors")["a"], base[:3])


def test_objects_are_refused(tmp_path):
    """What is neither a number, a string nor a tensor cannot get into a checkpoint."""
    with pytest.raises(TypeError, match="cannot store a object"):
        save_state({"x": object()}, tmp_path / "s.safetensors")


def test_tensors_without_memory_of_their_own_are_refused(tmp_path):
    """A quantised state is a tensor by name and two others inside; it would be written as something else."""
    state = {"exp_avg": TwoTensor(torch.ones(2), torch.ones(2))}
    with pytest.raises(TypeError, match="cannot store a TwoTensor"):
        save_state(state, tmp_path / "s.safetensors")
    with pytest.raises(TypeError, match="cannot store a TwoTensor"):
        check_storable(state)


def test_foreign_file_is_refused(tmp_path):
    """A safetensors file of another program is named, not misread."""
    save_file({"x": torch.ones(1)}, tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="was not written by gpt2_hf"):
        load_state(tmp_path / "s.safetensors")
