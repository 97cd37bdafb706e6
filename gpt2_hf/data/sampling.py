"""The order of the samples, a function of seed and epoch alone.

In: how many samples there are, or how long each is. Out: indices for a DataLoader.

A batch of one optimizer step is a run of consecutive indices, so it holds the same samples whatever the number of
processes and of accumulation steps it is divided among, and a resumed run skips indices without reading any data.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:  # the first takes seconds, the second imports this module
    from ..options.training_arguments import GPT2HFTrainingArguments
    from .samples import Samples

# Number of steps that are sorted by length together: enough that a step is of one length, few enough that
# which samples meet in a step stays random.
_STEPS_SORTED_TOGETHER = 64

_FIRST_SHIFTED = 1 << 62

FILLER = (1 << 63) - 1
"""The index of a sample without targets; it completes the last batch, and changes no loss and no gradient.

The largest index there is, so that no index of a user means it: −1 is the last sample."""


def allot(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a number by shares that sum to 1, by the method of the largest remainder.

    >>> allot(10, [0.55, 0.25, 0.2])
    [6, 2, 2]
    """
    exact = [total * share for share in shares]
    parts = [int(part) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return parts


def shifted(samples: np.ndarray, offset: int, num_samples: int) -> np.ndarray:
    """Indices of samples whose blocks begin `offset` tokens later than those of the plain indices.

    Dataset workers, resumed runs and other processes then need to know nothing but the index. It is far above those
    of a user, and equal to the plain one modulo the number of samples.
    """
    return (_FIRST_SHIFTED // num_samples + offset) * num_samples + samples


def offset_of(index: int, num_samples: int) -> int:
    """The offset of an index of `shifted`; negative for any other that is beyond the samples."""
    return index // num_samples - _FIRST_SHIFTED // num_samples


class EpochSampler(Sampler[int]):
    """Every sample once, in an order that depends on `(seed, epoch)` alone.

    With `mixture` the samples are of several texts, and an epoch has a given number of each. A text is then read from
    beginning to end over and over, in a new order each time: an epoch goes on where the one before stopped, so that
    no sample of a text is seen twice as long as another one has not been seen.

    Args:
        num_samples: samples of the dataset.
        seed: of the order.
        batch_size: samples of all processes in one forward pass; the last batch is completed by `FILLER`, so that
            every process gets its share and none is given a sample twice.
        lengths: length of each sample. Batches then hold samples of about one length, which saves padding.
        shuffle: without it, in the order of the data.
        step_size: samples of an optimizer step, the unit in which samples of one length are put together, so that
            steps are the same whatever their division into batches; `batch_size` when left out.
        mixture: of each text how many samples it has and how many of them are in an epoch; both sum to `num_samples`.
        num_offsets: above 1, every pass over a text draws an offset below this, and its indices are `shifted` by it.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        batch_size: int = 1,
        lengths: np.ndarray | None = None,
        shuffle: bool = True,
        step_size: int | None = None,
        mixture: Sequence[tuple[int, int]] | None = None,
        num_offsets: int = 1,
    ):
        self.num_samples = num_samples
        self.seed = seed
        self.batch_size = batch_size
        self.lengths = lengths
        self.shuffle = shuffle
        self.step_size = step_size or batch_size
        self.mixture = mixture
        self.num_offsets = num_offsets
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        for start in range(0, len(order), 1 << 16):
            yield from order[start : start + (1 << 16)].tolist()
        yield from [FILLER] * (len(self) - self.num_samples)

    def order(self) -> np.ndarray:
        """The samples of the epoch in their order, without filler."""
        # a counter-based generator: neighbouring seeds and epochs are unrelated
        generator = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        samples = np.arange(self.num_samples) if self.mixture is None else self._drawn(self.mixture)
        order = generator.permutation(samples) if self.shuffle else samples
        if self.lengths is not None and self.shuffle:
            order = self._bucketed(order, generator)
        return self._shift(order, 0, self.epoch) if self.mixture is None else order

    def _drawn(self, mixture: Sequence[tuple[int, int]]) -> np.ndarray:
        """The samples of the epoch, text after text."""
        drawn, offset = [np.zeros(0, np.int64)], 0
        for text, (size, count) in enumerate(mixture):
            first = self.epoch * count  # place in the endless row of passes over the text
            passes = range(first // size, -(-(first + count) // size)) if count else range(0)
            row = [self._shift(offset + self._pass(text, size, number), text + 1, number) for number in passes]
            drawn.append(np.concatenate([np.zeros(0, np.int64), *row])[first % size :][:count])
            offset += size
        return np.concatenate(drawn)

    def _pass(self, text: int, size: int, number: int) -> np.ndarray:
        """All samples of a text in the order in which they are read for the `number`-th time."""
        if not self.shuffle:
            return np.arange(size)
        # far from the counters that the order of an epoch of the same number uses
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, 0, text + 1]))
        return generator.permutation(size)

    def _shift(self, samples: np.ndarray, text: int, number: int) -> np.ndarray:
        """The samples of the `number`-th pass over a text, their blocks beginning where those of that pass do."""
        if self.num_offsets == 1:
            return samples
        # far from the counters that the orders use
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number], counter=[0, 0, 1, text]))
        return shifted(samples, int(generator.integers(self.num_offsets)), self.num_samples)

    def _bucketed(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        assert self.lengths is not None
        together = _STEPS_SORTED_TOGETHER * self.step_size
        for start in range(0, len(order), together):
            part = order[start : start + together]
            order[start : start + together] = part[np.argsort(self.lengths[part], kind="stable")]
        whole = len(order) // self.step_size
        steps = order[: whole * self.step_size].reshape(whole, self.step_size)
        return np.concatenate([generator.permutation(steps).reshape(-1), order[whole * self.step_size :]])


class TextByTextSampler(Sampler[int]):
    """Every sample once in the order of the data, no batch with samples of two texts: `FILLER` completes each text.

    Args:
        sizes: samples of each text.
        batch_size: samples of all processes in one forward pass.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int):
        self.sizes = sizes
        self.batch_size = batch_size

    def batches(self) -> list[int]:
        """How many batches each text has."""
        return [-(-size // self.batch_size) for size in self.sizes]

    def __len__(self) -> int:
        return sum(self.batches()) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = 0
        for size, batches in zip(self.sizes, self.batches(), strict=True):
            yield from range(first, first + size)
            yield from [FILLER] * (batches * self.batch_size - size)
            first += size


# What `train_sampler` knows of transformers' `train_sampling_strategy`.
STRATEGIES = ("random", "sequential", "group_by_length")


def train_sampler(args: "GPT2HFTrainingArguments", samples: "Samples", knows_filler: bool = True) -> EpochSampler:
    """The order in which a run trains on its samples; the trainer draws it and `plan` counts with it.

    Args:
        args, samples: of the run.
        knows_filler: whether its collator does; without that, the last batch of one process is short.
    """
    # A single batch that is short has one shape in every epoch, and need not be divided.
    is_short = args.world_size <= 1 and (args.train_batch_size >= len(samples) or not knows_filler)
    return EpochSampler(
        len(samples),
        args.order_seed,
        1 if is_short else args.train_batch_size * args.world_size,
        lengths=samples.lengths if args.train_sampling_strategy == "group_by_length" else None,
        shuffle=args.train_sampling_strategy != "sequential",
        step_size=args.samples_per_step,
        mixture=samples.mixture,
        num_offsets=samples.num_offsets if args.train_sampling_strategy == "random" else 1,
    )
