"""Commands as they are typed."""

import os
import shlex
import subprocess


def as_typed(*words: str) -> str:
    """Words as the system's shell wants them, in quotes where it would take them apart."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
