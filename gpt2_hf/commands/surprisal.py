"""How surprising each token of a text is to a model, and what the model expected instead.

In: a model, its tokenizer, a text. Out: the text in pieces, each with its surprisal and the likeliest tokens there.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.encoding import errors_of_tokenizer
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM

# Classes of surprisal, each with its upper limit in nats; one nat more is a factor of e in probability.
CLASSES = (("under 1 nat", 1.0), ("1 to 3", 3.0), ("3 to 5", 5.0), ("5 to 8", 8.0), ("8 and over", float("inf")))


class Token(NamedTuple):
    """A token of a text as a model sees it.

    Attributes:
        text: what the token adds to the text; empty where a character needs further tokens.
        nats: surprisal, −ln p(token | the tokens before it); `None` for the first token, which nothing predicts.
        alternatives: `(text, probability)` of the likeliest tokens at this place, the likeliest first.
    """

    text: str
    nats: float | None
    alternatives: list[tuple[str, float]]


def token_surprisals(
    model: GPT2HFForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str, num_alternatives: int = 5
) -> list[Token]:
    """Score each token of a text.

    A text that is longer than the model's positions is read in windows that overlap by half, so each token is
    predicted from at least half a window.

    Args:
        model: in evaluation mode.
        tokenizer: the tokenizer that the model was trained with.
        text: any text.
        num_alternatives: likeliest tokens to name at each place.

    Returns:
        The tokens. Their texts joined are the text as the tokenizer decodes it; the mean of their nats is the loss.
    """
    with errors_of_tokenizer():
        ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids, dtype=torch.long)
    if len(ids) == 0:
        return []
    tokens = [Token("", None, [])]
    for targets, log_probs in _scored(model, ids):
        nats = -log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)  # [t]
        top = log_probs.topk(min(num_alternatives, log_probs.shape[1]))
        for value, likeliest, scores in zip(
            nats.tolist(), top.indices.tolist(), top.values.exp().tolist(), strict=True
        ):
            named = [(_readable(tokenizer, i), score) for i, score in zip(likeliest, scores, strict=True)]
            tokens.append(Token("", value, named))
    pieces = _pieces(tokenizer, ids.tolist())
    return [token._replace(text=piece) for token, piece in zip(tokens, pieces, strict=True)]


def class_of(nats: float) -> str:
    """The name of the class of a surprisal."""
    return next(name for name, limit in CLASSES if nats < limit)


@torch.no_grad()
def _scored(model: GPT2HFForCausalLM, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Targets `[t]` and log-probabilities `[t, V]` in fp32, window after window; the first token is no target."""
    positions, done = model.config.n_positions, 1
    while done < len(ids):
        start = max(min(done - max(positions // 2, 1), len(ids) - positions), 0) if done > 1 else 0
        window = ids[start : start + positions]
        logits = model(window[:-1].unsqueeze(0).to(model.device)).logits[0, done - 1 - start :]
        log_probs = logits[:, : model.config.num_tokens].float().log_softmax(dim=1).cpu()
        yield window[done - start :], log_probs
        done = start + len(window)


def _readable(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token by itself; a part of a character as the vocabulary writes it."""
    text = tokenizer.decode([token_id])
    return str(tokenizer.convert_ids_to_tokens(token_id)) if "\ufffd" in text else str(text)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """What each token adds to the text."""
    stream = DecodeStream(skip_special_tokens=False)
    pieces = [stream.step(tokenizer.backend_tokenizer, token_id) or "" for token_id in ids]
    whole = str(tokenizer.decode(ids))
    pieces[-1] += whole[len("".join(pieces)) :]  # a text may end within a character
    return pieces
