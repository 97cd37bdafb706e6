"""A training step on an accelerator keeps to its device and never makes the host wait; no accelerator needed."""

import contextlib
import importlib
import traceback

import pytest
from torch.utils import backend_registration

from ..conftest import needs_fork_server
from ..faults import harness

pytestmark = [
    needs_fork_server,
    # What makes a device out of Python alone is private to torch, and there are releases without it.
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"), reason="an older torch"
    ),
]


def run_main(module, out, errors):
    """The body of a process: what the main function of a module prints goes to two files."""
    with (
        open(out, "w") as lines,
        open(errors, "w") as others,
        contextlib.redirect_stdout(lines),
        contextlib.redirect_stderr(others),
    ):
        try:
            importlib.import_module(module).main()
        except Exception:
            traceback.print_exc()  # here it is still in the file that the test shows
            raise


def lines_of(module, folder):
    """What a module of the tests prints, run in a process of its own."""
    out, errors = folder / "out", folder / "errors"
    codes = harness.join([harness.start_function(run_main, module, str(out), str(errors))], timeout=300)
    assert codes == [0], errors.read_text()
    return out.read_text().splitlines()


def test_steps_keep_to_the_device_and_the_host_does_not_wait(tmp_path):
    """Plain, with tied unused tokens and recomputed activations; both layouts; both optimizers and the guard.

    And a model that is divided over two devices. In five steps no number is read, and no copy is waited for.
    """
    assert len(lines_of("tests.fake_accelerator", tmp_path)) == 16


def test_a_whole_training_never_waits_between_two_logs(tmp_path):
    """Stored and streamed text, AdamW and Muon, fp32, bf16 and fp16, accumulation, DDP, in transformers' own loop.

    In 5 steps no number is read and no copy is waited for; of several processes each asks the others once a step, and
    transformers once for the number of tokens. With an optimizer that cannot skip a step on the device, one number a
    step is read, and the test names who reads it.
    """
    assert len(lines_of("tests.fake_training", tmp_path)) == 8
