"""A text in windows that overlap, so that nearly every token is scored with a long context before it.

In: one stream of token ids, a length, a stride. Out: samples and their collator. Next stage: `scoring`.
"""

from collections.abc import Iterator

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
    """

    def __init__(self, stream: np.ndarray, max_length: int, stride: int):
        self.stream = stream
        self.windows = list(_windows(len(stream), max_length, stride))
        places = np.array(self.windows, dtype=np.int64).reshape(-1, 3)
        self.first_targets = places[:, 1]  # place of each window's first scored token in the stream
        self.lengths = places[:, 2] - places[:, 1]  # scored tokens of each window

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start, first_scored, stop = self.windows[index]
        ids = self.stream[start:stop]
        targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
        offset = first_scored - start - 1  # position whose target is the first scored token
        targets[offset:-1] = ids[offset + 1 :]
        return {"input_ids": ids, "shift_labels": targets}


def _windows(num_tokens: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """`(start, first scored token, stop)` of each window."""
    scored_until = 1  # the very first token has no context
    for start in range(0, num_tokens, stride):
        stop = min(start + max_length, num_tokens)
        if stop > scored_until:
            # a window's own first token has no context inside it and was scored by the one before, if at all
            yield start, max(scored_until, start + 1), stop
            scored_until = stop
        if stop == num_tokens:
            return


def collate_windows(samples: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Windows to `input_ids` and `shift_labels`, both int64 `[B, T]`, right-padded."""
    length = max(len(sample["input_ids"]) for sample in samples)
    return {
        name: pad_rows([sample[name] for sample in samples], length, value)
        for name, value in (("input_ids", 0), ("shift_labels", IGNORE_INDEX))
    }
