"""A training step on an accelerator keeps to its device and never makes the host wait; no accelerator needed."""

import subprocess
import sys

import pytest
from torch.utils import backend_registration

from ..conftest import REPOSITORY

# What makes a device out of Python alone is private to torch, and there are releases without it.
needs_pretending = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="an older torch"
)


def lines_of(module):
    """What a module of the tests prints, run as a process of its own."""
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_pretending
def test_steps_keep_to_the_device_and_the_host_does_not_wait():
    """Plain, with tied unused tokens and recomputed activations; both layouts; both optimizers and the guard.

    And a model that is divided over two devices. In twenty steps no number is read, and no copy is waited for.
    """
    assert len(lines_of("tests.pretended_accelerator")) == 16


@needs_pretending
def test_a_whole_training_never_waits_between_two_logs():
    """Stored and streamed text, AdamW and Muon, fp32, bf16 and fp16, accumulation, DDP, in transformers' own loop.

    In 20 steps, and 5 of the rarer kinds, no number is read and no copy is waited for; of several processes each asks
    the others once a step, and transformers once for the number of tokens. With an optimizer that cannot skip a step
    on the device, one number a step is read, and the test names who reads it.
    """
    assert len(lines_of("tests.pretended_training")) == 8
