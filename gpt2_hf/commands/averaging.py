"""A text under the average of several models: the mean of the probabilities that they give each token.

In: saved models, texts. Out: losses of the average and of each model. Next stage: `evaluate`.

The models are loaded one after the other. What is kept is a number for each token, 8 bytes, so that of the memory of
the device no more is needed than for one model.

Legend: n scored tokens of a batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from .model_loading import SavedModel
from .scoring import PieceLosses, PieceSums, Text, score_text
from .text_units import TextCounts, TextUnits


class _AveragedProbabilities:
    """The mean, over several models, of the probability of each of this process's tokens.

    Kept is the logarithm of their sum, 8 bytes per token.
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []  # float64 [n] each, ln of the sum of the probabilities
        self._num_models = 0
        self._next = 0

    def next_model(self) -> Callable[[np.ndarray], None]:
        """What takes the losses of a further model, batch after batch."""
        self._num_models += 1
        self._next = 0
        return self._add

    def _add(self, losses: np.ndarray) -> None:
        """Add the probabilities of the next batch, by its losses, float64 `[n]`; each model has the same batches."""
        if self._num_models == 1:
            self._parts.append(-losses)
        else:
            part = self._parts[self._next]
            np.logaddexp(part, -losses, out=part)
        self._next += 1

    def losses(self) -> Iterator[np.ndarray]:
        """−ln of the mean probability of each token, float64 `[n]`, batch after batch."""
        for part in self._parts:
            yield math.log(self._num_models) - part


@dataclass(frozen=True)
class ScoredText:
    """What some models make of a text, over all processes.

    Attributes:
        losses: of the averaged probabilities; of a single model its own.
        members: those of each model by itself.
        counts: the text that was scored; `None` where the tokenizer does not keep its bytes.
    """

    losses: PieceLosses
    members: list[PieceLosses]
    counts: TextCounts | None

    def of_member(self, number: int) -> "ScoredText":
        """What one of the models makes of it alone."""
        return ScoredText(self.members[number], [self.members[number]], self.counts)

    @classmethod
    def joined(cls, texts: Iterable["ScoredText"]) -> "ScoredText":
        """Several texts as one."""
        texts = list(texts)
        members = [PieceLosses.joined(of_one) for of_one in zip(*(text.members for text in texts), strict=True)]
        counts = [text.counts for text in texts if text.counts is not None]
        whole = sum(counts, TextCounts()) if len(counts) == len(texts) else None
        return cls(PieceLosses.joined(text.losses for text in texts), members, whole)


def score_texts(
    models: Sequence[SavedModel],
    texts: Mapping[str, Text],
    *,
    device: torch.device,
    batch_size: int,
    dtype: torch.dtype | None,
) -> dict[str, ScoredText]:
    """Score each text with one model, or with the average of the probabilities that several give each token.

    The models are loaded one after the other.

    Args:
        models: with one tokenizer.
        texts: by their names.
        device: to compute on.
        batch_size: samples in a batch.
        dtype: compute the products in this type by autocast.
    """
    units = TextUnits.of(models[0].tokenizer)
    unfinished = {name: _UnfinishedText(text, units, several=len(models) > 1) for name, text in texts.items()}
    for saved in models:
        model = saved.load().to(device)
        for text in unfinished.values():
            text.score(model, batch_size, dtype)
        del model  # before the next one is loaded
    return {name: text.finish(device) for name, text in unfinished.items()}


class _UnfinishedText:
    """A text, and what the models before have made of it."""

    def __init__(self, text: Text, units: TextUnits | None, several: bool):
        self._text = text
        self._units = units
        self._average = _AveragedProbabilities() if several else None
        self._members: list[PieceLosses] = []
        self._counts: TextCounts | None = None

    def score(self, model: GPT2HFForCausalLM, batch_size: int, dtype: torch.dtype | None) -> None:
        """Score it with a further model; the first one counts the text."""
        is_first = not self._members
        on_losses = self._average.next_model() if self._average is not None else None
        units = self._units if is_first else None
        losses, counts = score_text(model, self._text, batch_size, dtype, units, on_losses)
        self._members.append(losses)
        if is_first:
            self._counts = counts

    def finish(self, device: torch.device) -> ScoredText:
        """What all of the models make of it."""
        losses = self._members[0]
        if self._average is not None:
            sums = PieceSums(self._text.piece_begins)
            for part in self._average.losses():
                sums.add(part)
            losses = sums.over_processes(device)
        return ScoredText(losses, self._members, self._counts)
