"""The random numbers of training: kept, given back, and left alone by everything else."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def get_rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every random number generator that training draws from."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = torch.get_device_module(device).get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Continue to draw where `get_rng_state` was called."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        torch.get_device_module(device).set_rng_state(state[device.type])


@contextlib.contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Run something that draws random numbers without moving those of training."""
    state = get_rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)
