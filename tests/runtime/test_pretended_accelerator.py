"""A training step on an accelerator keeps to its device and never makes the host wait; no accelerator needed."""

import subprocess
import sys

import pytest
from torch.utils import backend_registration

from ..conftest import REPOSITORY


# What makes a device out of Python alone is private to torch, and there are releases without it.
@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="an older torch"
)
def test_steps_keep_to_the_device_and_the_host_does_not_wait():
    """Plain, with tied unused tokens and recomputed activations; both layouts; both optimizers and the guard.

    In twenty steps no number is read, and no copy is waited for.
    """
    command = [sys.executable, "-m", "tests.pretended_accelerator"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 14
