"""This process: as psutil sees it, and settings that it has while a job of this package runs, and only then."""

import contextlib
import ctypes
import os
from collections.abc import Iterator

import psutil

# malloc.h, with the values that glibc begins with
_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD = -1, 128 * 1024
_M_MMAP_MAX, _DEFAULT_MMAP_MAX = -4, 65536
_NO_TRIMMING = -1

# oneDNN keeps a kernel of about a megabyte for each shape of a product, up to 1,024 of them. A step's own shapes fit
# into this number; a flat row of other documents has others anyway.
_KERNEL_CACHE = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

_num_keeping_memory = 0  # nested and parallel uses of `keep_freed_memory`


def own_process() -> psutil.Process:
    """This process, also in a namespace of processes that still sees its parent's /proc.

    There `os.getpid()`, which psutil would take, is the number of another process; /proc/self is right.
    """
    try:
        return psutil.Process(int(os.readlink("/proc/self")))
    except OSError:  # not on Linux
        return psutil.Process()


@contextlib.contextmanager
def suit_changing_shapes(device_type: str, shapes_change: bool = True) -> Iterator[None]:
    """Let a CPU keep the memory that a step frees, but few kernels; keep CUDA from planning attention for each shape.

    Lines of text and evaluations bring new shapes all the time. Blocks of one length need one plan, which is made.

    Args:
        device_type: `cpu`, `cuda`, …; the others are left as they are.
        shapes_change: not if nearly all batches have one shape.
    """
    if device_type == "cpu":
        with keep_few_kernels(), keep_freed_memory():
            yield
    elif device_type == "cuda" and shapes_change:
        with unplanned_attention():
            yield
    else:
        yield


@contextlib.contextmanager
def unplanned_attention() -> Iterator[None]:
    """Leave out cuDNN's attention, which torch prefers on the newest GPUs; without one this does nothing.

    It makes a plan for every new shape, which takes longer than a step; torch's own flash kernel needs none.
    """
    import torch

    planned = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(planned)


@contextlib.contextmanager
def keep_few_kernels() -> Iterator[None]:
    """Bound the kernels that oneDNN keeps, unless the user has; it reads the variable at this process's first product.

    Lines of text bring new shapes at every step, and the memory of a small model would grow by a gigabyte.
    """
    name, value = _KERNEL_CACHE
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[bool]:
    """Let this process reuse the memory that it frees, as mallopt(3) describes; its peak hardly changes.

    glibc gives large blocks back to the system as soon as they are freed and asks for them again; each of their pages
    is then zeroed by the kernel at its first use. A training step frees and allocates all its activations, logits and
    gradients.

    Yields:
        Whether it does. Not with another C library than glibc, and not where the user has tuned it by environment
        variables (mallopt(3), or `GLIBC_TUNABLES`).
    """
    global _num_keeping_memory
    glibc = _tunable_glibc()
    if glibc is None:
        yield False
        return
    _num_keeping_memory += 1
    try:
        # Large blocks from the heap like small ones, and the heap never shrinks.
        yield glibc.mallopt(_M_MMAP_MAX, 0) == 1 and glibc.mallopt(_M_TRIM_THRESHOLD, _NO_TRIMMING) == 1
    finally:
        _num_keeping_memory -= 1
        if not _num_keeping_memory:
            glibc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
            glibc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
            glibc.malloc_trim(0)


def _tunable_glibc() -> ctypes.CDLL | None:
    """glibc, if it is this process's C library and nobody has tuned its allocator."""
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.name != "posix":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
