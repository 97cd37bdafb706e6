"""What the job around a Trainer knows and the Trainer cannot."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..runtime.stop_signals import SignalWatch
from ..runtime.stopwatch import Stopwatch


@dataclass
class JobContext:
    """One invocation of a job, for the Trainer that does its training.

    Attributes:
        watch: stopwatch of the invocation; the time budget counts from its start.
        signals: signals on which to save and stop.
        run_files: small files (`name: path`) to be copied into every checkpoint.
        closing_seconds: estimated time of what the job does after `train()`, the test split not counted.
        test_dataset: what the job scores then, if there is time for it.
        write_sample: makes a text with the model; it is shown after each evaluation during training.
        best_is_comparable: whether the best model of the resumed run is measured as this one's will be.
        folder_is_lost: whether the output folder was moved, or taken by another process; then nothing more may be
            saved there.
    """

    watch: Stopwatch
    signals: SignalWatch = field(default_factory=SignalWatch)
    run_files: dict[str, Path] = field(default_factory=dict)
    closing_seconds: float = 0.0
    test_dataset: Any = None
    write_sample: Callable[[Any], str] | None = None
    best_is_comparable: bool = True
    folder_is_lost: Callable[[], bool] = lambda: False
