"""The C library's allocator, told to keep the memory that a training step on a CPU frees for the next step.

glibc gives large blocks back to the system as soon as they are freed and asks for them again; each of their pages is
then zeroed by the kernel at its first use. A step frees and allocates all its activations, logits and gradients.
"""

import ctypes
import os

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process reuse what it frees, as mallopt(3) describes; its peak memory hardly changes.

    Returns:
        Whether it does. Not with another C library than glibc, and not where the user has tuned it by environment
        variables (mallopt(3), or `GLIBC_TUNABLES`).
    """
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or os.name != "posix":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # Large blocks from the heap like small ones, and the heap never shrinks.
    return library.mallopt(_M_MMAP_MAX, 0) == 1 and library.mallopt(_M_TRIM_THRESHOLD, -1) == 1
