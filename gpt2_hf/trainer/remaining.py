"""What a run still does after its last step, and how long each part of it takes.

In: times that were measured so far. Out: seconds. The time budget must leave room for them, and `plan`
adds them up before the run.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Samples
from ..runtime.stopwatch import Stopwatch

# On top of the known times: a share for those that grow, and a few seconds for ending the process.
_MARGIN = 1.15
_LEAVING_SECONDS = 3.0
# A sample costs a third of its training step's arithmetic; a half leaves room for reading it.
_EVALUATION_SHARE_OF_STEP = 0.5


@dataclass(frozen=True)
class RemainingWork:
    """Seconds that each part besides the training steps takes.

    Attributes:
        evaluation: the validation split and the text that is shown after it; 0 if the run never evaluates, infinite
            while it is not known.
        checkpoint: saving one; 0 if the run never saves.
        test: the score of the test split; 0 if there is none, infinite while it is not known.
        closing: results, sample and report at the very end.
    """

    evaluation: float = 0.0
    checkpoint: float = 0.0
    test: float = 0.0
    closing: float = 0.0

    def to_end(self) -> list[float]:
        """From stopping to the end of the process: without optional work, with an evaluation, with the test too."""
        needed = self.checkpoint + self.closing
        return [with_margin(needed + seconds) for seconds in itertools.accumulate((0.0, self.evaluation, self.test))]

    @property
    def evaluation_and_checkpoint(self) -> float:
        """What comes right after the last step."""
        return with_margin(self.evaluation + self.checkpoint)


def with_margin(seconds: float) -> float:
    """A known time with room for what nobody knows."""
    return _MARGIN * seconds + _LEAVING_SECONDS


def generation_seconds(num_tokens: int, num_parameters: int) -> float:
    """Upper estimate of the time to generate a text.

    Each token reads every weight once; 4 GB/s is what a slow machine's memory gives.
    """
    return num_tokens * (4 * num_parameters / 4e9 + 0.01)


def checkpoint_seconds(watch: Stopwatch, num_parameters: int) -> float:
    """Time to save a checkpoint; before the first, weights and moments at a slow disk's 100 MB/s."""
    return watch.longest("save") or 1.0 + 12 * num_parameters / 100e6


def num_samples_of(dataset: Any) -> int | None:
    """Samples of a split, or of all splits of a dict; `None` where one does not know its length."""
    if isinstance(dataset, dict):
        sizes = [num_samples_of(split) for split in dataset.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)
    if dataset is None:
        return 0
    try:
        return len(dataset)
    except TypeError:
        return None


def size_ratio(split: Any, other: Any, padded_alike: bool = False) -> float | None:
    """How many times as long as another split one takes; by scored tokens where both are this package's samples.

    Otherwise by samples; `None` if nobody knows their number, or the other has none.

    Args:
        split, other: the two.
        padded_alike: whether every sample is padded to the same length, so that each takes as long as any other.
    """
    if isinstance(split, Samples) and isinstance(other, Samples) and not padded_alike:
        return float(split.lengths.sum(dtype=np.int64) / other.lengths.sum(dtype=np.int64)) if len(other) else None
    size, of_other = num_samples_of(split), num_samples_of(other)
    return size / of_other if size is not None and of_other else None


def split_seconds(
    watch: Stopwatch, split: Any, validation: Any, train: Any, samples_per_step: int, padded_alike: bool = False
) -> float:
    """Time to score a split: as measured on the validation split, before that estimated from the training steps.

    Args:
        watch: has measured evaluations and steps.
        split: to be scored.
        validation: the split that was measured.
        train: the training samples.
        samples_per_step: of an optimizer step.
        padded_alike: see `size_ratio`.

    Returns:
        Seconds; infinite for an unknown size, and before the third step, since a first step may compile for minutes.
    """
    num_samples = num_samples_of(split)
    if num_samples == 0:
        return 0.0
    if num_samples is None:
        return float("inf")
    measured, ratio = watch.longest("evaluate"), size_ratio(split, validation, padded_alike)
    if measured is not None and ratio is not None:
        return measured * ratio
    step = watch.median("step")
    if step is None:
        return float("inf")
    ratio = size_ratio(split, train, padded_alike)
    as_training_samples = ratio * len(train) if ratio is not None else num_samples
    return _EVALUATION_SHARE_OF_STEP * step * as_training_samples / samples_per_step
