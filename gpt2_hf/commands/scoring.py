"""The losses of a text's tokens under a model, and the figures that are made of their sums.

In: a model, samples. Out: losses and units of text, summed over all processes; loss, perplexity, bits per byte. Next
stage: `averaging`, for several models; `evaluate`.

Only what was scored counts. The first token of a document (of a window, where windows do not overlap) is not scored,
having nothing before it; nor is what `--truncate` or `--max_eval_samples` leave out. Neither is in the number of
tokens, nor of words, nor of bytes, by which the summed loss is divided.

Legend: n scored tokens of a batch, P segments of the text.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..model.chunked_loss import IGNORE_INDEX
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..model.packing import next_tokens
from ..perplexity import perplexity
from ..runtime.distributed import is_distributed, num_processes, process_index, sum_over_processes
from ..runtime.temporary import evaluation_mode
from .significance import Places, piece_borders
from .text_units import TextCounts, TextUnits


def evaluate_model(
    model: GPT2HFForCausalLM,
    samples: Dataset,
    collator: Any,
    *,
    batch_size: int = 8,
    dtype: torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, Any]:
    """Sum the token losses of all samples, divided among the processes if there are several.

    Args:
        model: the model to score, on its device.
        samples: a map-style dataset of samples that `collator` understands.
        collator: makes a batch of a list of samples, with `labels` or with `shift_labels`.
        batch_size: samples in a batch; beyond rounding neither it nor the number of processes changes the result.
        dtype: compute the products in this type by autocast.
        tokenizer: with it, the figures per word and per byte as well.

    Returns:
        `loss` (nats per scored token), `perplexity`, `tokens` (scored), `nll` (the sum, in nats); with a tokenizer
        also `word_perplexity`, `bits_per_byte`, `words`, `line_ends` (among the words) and `bytes`, which the output
        of the command defines, or `None` where the tokenizer does not keep the bytes of the text (see `text_units`).

    Raises:
        UserError: if no token is scored, or a batch has no labels.
    """
    units = TextUnits.of(tokenizer) if tokenizer is not None else None
    losses, counts = score_text(model, Text(samples, collator), batch_size, dtype, units)
    result = figures(losses)
    return result if tokenizer is None else result | text_figures(losses, counts)


@dataclass(frozen=True)
class Text:
    """What is scored.

    Attributes:
        samples: a map-style dataset.
        collator: makes a batch of a list of samples.
        piece_begins: int64 `[P - 1]`, ascending: the number of this process's first scored token in each segment but
            the first.
    """

    samples: Any
    collator: Any
    piece_begins: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def in_pieces(cls, samples: Any, collator: Any, places: Places, document_starts: np.ndarray) -> "Text":
        """A text whose losses are also summed for each of its segments (see `significance.piece_borders`)."""
        own = places.of_process(process_index(), num_processes())
        return cls(samples, collator, own.tokens_before(piece_borders(places, document_starts)))


def score_text(
    model: GPT2HFForCausalLM,
    text: Text,
    batch_size: int,
    dtype: torch.dtype | None,
    units: TextUnits | None = None,
    on_losses: Callable[[np.ndarray], None] | None = None,
) -> tuple["PieceLosses", TextCounts | None]:
    """Score a text.

    Args:
        model: on its device.
        text: its samples are divided among the processes.
        batch_size: samples in a batch.
        dtype: compute the products in this type by autocast.
        units: count the text that is scored.
        on_losses: gets the losses of each batch of this process, float64 `[n]`.

    Returns:
        `(losses, amount of text or None)`, of all processes.

    Raises:
        UserError: if no token is scored.
    """
    sums, counts = PieceSums(text.piece_begins), TextCounts()
    for batch in _score(model, text.samples, text.collator, batch_size, dtype):
        sums.add(batch.losses)
        if units is not None:
            counts += units.count(batch.previous, batch.tokens)
        if on_losses is not None:
            on_losses(batch.losses)
    losses = sums.over_processes(model.device)
    if units is None:
        return losses, None
    numbers = _sum_over_processes([counts.words, counts.line_ends, counts.bytes], torch.int64, model.device)
    return losses, TextCounts(*numbers)


class _ScoredTokens(NamedTuple):
    losses: np.ndarray  # float64 [n], nats
    previous: np.ndarray  # int64 [n], the token before
    tokens: np.ndarray  # int64 [n]


@torch.no_grad()
def _score(
    model: GPT2HFForCausalLM, samples: Any, collator: Any, batch_size: int, dtype: torch.dtype | None
) -> Iterator[_ScoredTokens]:
    """The scored tokens of this process's samples, in their order, a batch at a time."""
    device = model.device
    loader = DataLoader(_share_of_process(samples), batch_size=batch_size, collate_fn=collator)
    with evaluation_mode(model):
        for batch in tqdm(loader, desc="evaluating", leave=False, disable=None if process_index() == 0 else True):
            input_ids, targets = batch["input_ids"], _targets(batch)
            scored = targets != IGNORE_INDEX
            batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                losses = model(**batch, reduction="none", return_logits=False, use_cache=False).loss
            yield _ScoredTokens(
                losses.cpu()[scored].double().numpy(), input_ids[scored].numpy(), targets[scored].numpy()
            )


def _targets(batch: Any) -> torch.Tensor:
    """The target of each position, int64 `[B, T]`, as the model has it."""
    if batch.get("shift_labels") is not None:
        return batch["shift_labels"]
    if batch.get("labels") is None:
        raise UserError("the collator gives nothing to score; its batches need `labels` or `shift_labels`")
    return next_tokens(batch["labels"], batch.get("cu_seq_lens_q"))


def _share_of_process(samples: Any) -> Dataset:
    """The samples of this process: every sample belongs to exactly one."""
    if not is_distributed():
        return samples
    return Subset(samples, range(process_index(), len(samples), num_processes()))


def _sum_over_processes(values: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The sums of a list of numbers or an array, in what it came in."""
    if not is_distributed():
        return values
    total = sum_over_processes(torch.as_tensor(values, dtype=dtype, device=device).clone())
    return total.cpu().numpy() if isinstance(values, np.ndarray) else total.tolist()


@dataclass(frozen=True)
class PieceLosses:
    """The summed losses of a text, by its segments; of a text in one segment there is one of each.

    Attributes:
        nll: float64 `[P]`, nats.
        tokens: int64 `[P]`, scored.
    """

    nll: np.ndarray
    tokens: np.ndarray

    @classmethod
    def joined(cls, texts: Iterable["PieceLosses"]) -> "PieceLosses":
        """Of several texts, one after the other."""
        texts = list(texts)
        return cls(np.concatenate([text.nll for text in texts]), np.concatenate([text.tokens for text in texts]))


class PieceSums:
    """Sums the losses of this process's tokens, which come in their order.

    Args:
        begins: int64 `[P - 1]`, ascending: the number of this process's first token in each segment but the first.
    """

    def __init__(self, begins: np.ndarray):
        self._begins = begins
        self._nll = np.zeros(len(self._begins) + 1)
        self._tokens = np.zeros(len(self._begins) + 1, dtype=np.int64)
        self._seen = 0

    def add(self, losses: np.ndarray) -> None:
        """Add the next tokens' losses, float64 `[n]`."""
        numbers = np.arange(self._seen, self._seen + len(losses))
        piece = np.searchsorted(self._begins, numbers, side="right")
        self._nll += np.bincount(piece, weights=losses, minlength=len(self._nll))
        self._tokens += np.bincount(piece, minlength=len(self._nll))
        self._seen += len(losses)

    def over_processes(self, device: torch.device) -> PieceLosses:
        """The sums of all processes.

        Raises:
            UserError: if there is no token.
        """
        nll = _sum_over_processes(self._nll, torch.float64, device)
        tokens = _sum_over_processes(self._tokens, torch.int64, device)
        if not tokens.any():
            raise UserError("no token was scored: with one token of context nothing is predicted; raise --max_length")
        return PieceLosses(nll, tokens)


def figures(losses: PieceLosses) -> dict[str, Any]:
    """`loss`, `perplexity`, `tokens` and `nll`, the sum of the losses."""
    nll, tokens = math.fsum(losses.nll), int(losses.tokens.sum())
    return {"loss": nll / tokens, "perplexity": perplexity(nll / tokens), "tokens": tokens, "nll": nll}


def text_figures(losses: PieceLosses, counts: TextCounts | None) -> dict[str, Any]:
    """The figures per word and per byte, and the counts; `None` if these are unknown."""
    if counts is None:
        return dict.fromkeys(("word_perplexity", "bits_per_byte", "words", "line_ends", "bytes"))
    nll = math.fsum(losses.nll)
    return {
        "word_perplexity": perplexity(nll / counts.words) if counts.words else None,
        "bits_per_byte": nll / math.log(2) / counts.bytes if counts.bytes else None,
        "words": counts.words,
        "line_ends": counts.line_ends,
        "bytes": counts.bytes,
    }
