"""Texts of a model while they are made, several at a time.

In: a model, its tokenizer, a prompt. Out: after each token, all texts so far.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .generate import can_stream, generate_texts

# torch's random numbers belong to the process, and a text that was given up may still be at its last token.
_ONE_AT_A_TIME = threading.Lock()


class _StoppedError(Exception):
    """Nobody reads any more."""


class _RowStreamer(BaseStreamer):
    """Puts the tokens of a batch into a queue, a tensor `[B]` a step."""

    def __init__(self) -> None:
        self.prompt: Tensor | None = None  # [B, T], which comes first
        self.steps: queue.Queue[Any] = queue.Queue()
        self.is_stopped = False

    def put(self, value: Tensor) -> None:
        if self.is_stopped:
            raise _StoppedError
        if self.prompt is None:
            self.prompt = value
        else:
            self.steps.put(value)

    def end(self) -> None:
        """Nothing: the texts come from `generate_texts` itself."""


def stream_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, num_samples: int = 1, **options: Any
) -> Iterator[list[str]]:
    """Continue a prompt several times.

    Args:
        model: any causal language model of transformers.
        tokenizer: the tokenizer it was trained with.
        prompt: the text to continue.
        num_samples: texts to generate, all at the same time.
        options: those of `generate_texts`.

    Yields:
        The continuations so far, `num_samples` of them; at last those that `generate_texts` returns. These alone with
        beam search, and where it makes one text at a time.

    Raises:
        UserError: as `generate_texts`.
    """
    streamer = _RowStreamer()
    options |= {"batch_size": num_samples, "streamer": streamer if can_stream(model) else None}
    whole = generate_texts(model, tokenizer, [prompt], num_samples=num_samples, **options)

    def generate() -> None:
        try:
            with _ONE_AT_A_TIME:
                streamer.steps.put(next(whole))
        except Exception as error:  # raised again where it is waited for
            streamer.steps.put(error)

    threading.Thread(target=generate, name="gpt2_hf-text", daemon=True).start()
    columns: list[Tensor] = []
    try:
        while not isinstance(step := streamer.steps.get(), list):
            if isinstance(step, Exception):
                raise step
            columns.append(step)
            assert streamer.prompt is not None
            texts = _continuations(tokenizer, streamer.prompt, torch.stack(columns, dim=1))
            yield texts * (num_samples // len(texts))  # a single one at temperature 0
        yield step
    finally:
        streamer.is_stopped = True


def _continuations(tokenizer: PreTrainedTokenizerBase, prompt: Tensor, tokens: Tensor) -> list[str]:
    """The texts of `[B, t]` tokens after prompts `[B, T]`, without a character that is not whole yet."""
    texts = []
    for before, after in zip(prompt, tokens, strict=True):
        text = tokenizer.decode(torch.cat([before, after]), skip_special_tokens=True)
        texts.append(text[len(tokenizer.decode(before, skip_special_tokens=True)) :].rstrip("\ufffd"))
    return texts
