"""A training process on a CPU does not give its memory back to the system after each step."""

import os
import platform

import pytest

from gpt2_hf.runtime.own_process import suit_changing_shapes

from ..conftest import python

CODE = """
import ctypes, resource
from gpt2_hf.runtime.own_process import keep_freed_memory

glibc = ctypes.CDLL(None)
glibc.malloc.restype, glibc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
glibc.free.argtypes = [ctypes.c_void_p]

def use_64_mb():
    block = glibc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    glibc.free(block)

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use_64_mb()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with keep_freed_memory(), keep_freed_memory() as kept:
    use_64_mb()
    pages = new_pages()
print(kept, pages, new_pages())
"""

# The package asks glibc alone; elsewhere the function only says that it did nothing.
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def run(**environment):
    """Whether memory is kept, and how many pages were new inside and afterwards, as the code prints it."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    kept, new_pages, afterwards = python(CODE, env={**clean, **environment}, check=True).stdout.split()
    return kept == "True", int(new_pages), int(afterwards)


@glibc_only
def test_freed_memory_is_used_again():
    """Of five more tensors of 64 MB, one after the other, at most one needs new pages.

    After the last nested use the host program has its allocator back: each is given back to the system again.
    """
    kept, new_pages, afterwards = run()
    assert kept and new_pages < 1.1 * (64 << 20) / os.sysconf("SC_PAGESIZE")
    assert afterwards > 4 * (64 << 20) / os.sysconf("SC_PAGESIZE")


@glibc_only
@pytest.mark.parametrize(
    "tuned", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_a_users_own_tuning_is_left_alone(tuned):
    """What the environment says about malloc stays in force."""
    kept, _, _ = run(**tuned)
    assert not kept


@pytest.mark.parametrize("own", [None, "64"])
def test_few_kernels_are_kept_unless_the_user_says_otherwise(monkeypatch, own):
    """oneDNN reads the number from the environment, which is as it was afterwards."""
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, own) if own else monkeypatch.delenv(name, raising=False)
    with suit_changing_shapes("cuda"):
        assert os.environ.get(name) == own
    with suit_changing_shapes("cpu"), suit_changing_shapes("cpu"):
        assert os.environ[name] == (own or "256")
    assert os.environ.get(name) == own
