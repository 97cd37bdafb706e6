"""A training process on a CPU does not give its memory back to the system after each step."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from gpt2_hf.runtime.cpu_memory import keep_freed_memory

kept = keep_freed_memory()
torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# The package asks glibc alone; elsewhere the function only says that it did nothing.
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(**environment):
    """Whether memory is kept, and how many pages were new, as the code prints it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", CODE]
    out = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout
    kept, new_pages = out.split()
    return kept == "True", int(new_pages)


@glibc_only
def test_freed_memory_is_used_again():
    """Of five more tensors of 64 MB, one after the other, at most one needs new pages."""
    kept, new_pages = run()
    assert kept and new_pages < 1.1 * (64 << 20) / os.sysconf("SC_PAGESIZE")


@glibc_only
@pytest.mark.parametrize(
    "tuned", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_a_users_own_tuning_is_left_alone(tuned):
    """What the environment says about malloc stays in force."""
    kept, _ = run(**tuned)
    assert not kept
