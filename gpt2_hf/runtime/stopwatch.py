"""How long the parts of a run take, measured as it runs."""

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from .own_process import own_process

_RECENT = 100  # times of each part that are remembered
# What is older when our first line runs is taken for a shell that became this process, not for a slow start.
_LONGEST_START = 10.0


def process_age() -> float:
    """Seconds since this process began; 0 if it was something else before.

    `sh -c "pip install ... && python run_clm.py ..."` becomes its last command, and hands over its age.
    """
    age = max(time.time() - own_process().create_time(), 0.0)
    return age if age <= _LONGEST_START else 0.0


@dataclass
class Stopwatch:
    """Wall time of an invocation and of its parts, in seconds.

    Attributes:
        age_at_start: how old the process was when this watch was made.
        recent: the last hundred times of each part.
        total: the summed time of each part.
    """

    age_at_start: float = field(default_factory=process_age)
    recent: dict[str, deque[float]] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Count from now on; the times of the parts stay known."""
        self.age_at_start = 0.0
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the process began, or since `restart`."""
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
        self.recent.setdefault(part, deque(maxlen=_RECENT)).append(seconds)
        self.total[part] = self.total.get(part, 0.0) + seconds

    def longest(self, part: str) -> float | None:
        """The longest recent time of a part; `None` before the first.

        Of three and more the second longest: a single exception, such as a compilation or a process that was
        suspended, says nothing of the next time.
        """
        times = sorted(self.recent.get(part, ()))
        return times[-2 if len(times) >= 3 else -1] if times else None

    def median(self, part: str) -> float | None:
        """The median of the recent times of a part; `None` before there are three, which may all be exceptions."""
        times = self.recent.get(part, ())
        return statistics.median(times) if len(times) >= 3 else None


def duration(seconds: float) -> str:
    """`1:02:03`, or `2 days, 3:04:05`."""
    return str(timedelta(seconds=round(seconds)))
