"""How long the parts of a run take, measured as it runs."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .own_process import own_process


def process_age() -> float:
    """Seconds since this process began, imports included."""
    return max(time.time() - own_process().create_time(), 0.0)


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
