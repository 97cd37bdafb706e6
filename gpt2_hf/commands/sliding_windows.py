"""A text in windows that overlap, so that nearly every token is scored with a long context before it.

In: a stream of token ids, a length, a stride. Out: samples and their collator. Next stage: `scoring`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.collators import pad_rows
from ..model.chunked_loss import IGNORE_INDEX


class SlidingWindows(Dataset):
    """One stream of tokens in windows of `max_length` inputs that move on by `stride`.

    A token is scored in the first window that reaches it, with all the context it has there; a window's own first
    token has none and is not scored, so with `stride < max_length` every token but the very first is scored once.
    These are the windows of the perplexity guide in transformers' documentation. With `stride = max_length` the
    guide's figure is this one. With less it weighs each window but the first as if it had one target less, because it
    subtracts one for the shift where no target is lost: its mean is of the same token losses, off in the weights by
    about one part in `stride`. Here every scored token weighs the same.

    Args:
        read: gives the tokens of a span of the stream; a window is read when it is asked for.
        num_tokens: of the stream.
        max_length: of a window, in tokens.
        stride: how far a window begins from the one before; at most `max_length`.

    Attributes:
        first_targets: int64 `[windows]`, the place of each window's first scored token in the stream.
        lengths: int64 `[windows]`, the scored tokens of each window.
    """

    def __init__(self, read: Callable[[int, int], np.ndarray], num_tokens: int, max_length: int, stride: int):
        self._read = read
        starts = np.arange(0, num_tokens, stride)
        stops = np.minimum(starts + max_length, num_tokens)
        # the very first token has no context
        scored_until = np.maximum(np.concatenate([np.ones(1, np.int64), stops[:-1]]), 1)[: len(stops)]
        adds = stops > scored_until
        self._starts, self._stops = starts[adds], stops[adds]
        # a window's own first token has no context inside it and was scored by the one before, if at all
        self.first_targets = np.maximum(scored_until[adds], self._starts + 1)
        self.lengths = self._stops - self.first_targets

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, first_scored, stop = int(self._starts[index]), int(self.first_targets[index]), int(self._stops[index])
        ids = self._read(start, stop)
        targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
        offset = first_scored - start - 1  # position whose target is the first scored token
        targets[offset:-1] = ids[offset + 1 :]
        return {"input_ids": ids, "shift_labels": targets}


def collate_windows(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Windows to `input_ids` and `shift_labels`, both int64 `[B, T]`, right-padded."""
    length = max(len(sample["input_ids"]) for sample in samples)
    return {
        name: pad_rows([sample[name] for sample in samples], length, value)
        for name, value in (("input_ids", 0), ("shift_labels", IGNORE_INDEX))
    }
