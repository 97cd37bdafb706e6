"""How long the parts of a run take, measured as it runs."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil


def process_age() -> float:
    """Seconds since this process began, imports included."""
    try:
        # In a namespace of processes that still sees its parent's /proc, os.getpid() is the number of another process.
        number = int(os.readlink("/proc/self"))
    except OSError:
        number = os.getpid()
    return max(time.time() - psutil.Process(number).create_time(), 0.0)


@dataclass
class Stopwatch:
    """Wall time of an invocation and of its parts, in seconds.

    Attributes:
        age_at_start: how old the process was when this watch was made.
        longest: the longest single time of each part.
        total: the summed time of each part.
    """

    age_at_start: float = field(default_factory=process_age)
    longest: dict[str, float] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since the process began."""
        return self.age_at_start + time.monotonic() - self._started

    @contextlib.contextmanager
    def measure(self, part: str) -> Iterator[None]:
        """Time one execution of a part."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add(part, time.monotonic() - begin)

    def add(self, part: str, seconds: float) -> None:
        """Record one execution of a part."""
        self.longest[part] = max(self.longest.get(part, 0.0), seconds)
        self.total[part] = self.total.get(part, 0.0) + seconds
