"""This process as psutil sees it: when it began, and its memory."""

import os

import psutil


def own_process() -> psutil.Process:
    """This process, also in a namespace of processes that still sees its parent's /proc.

    There `os.getpid()`, which psutil would take, is the number of another process; /proc/self is right.
    """
    try:
        return psutil.Process(int(os.readlink("/proc/self")))
    except OSError:  # not on Linux
        return psutil.Process()
