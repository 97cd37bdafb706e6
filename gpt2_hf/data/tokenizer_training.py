"""A tokenizer of one's own, trained on a text: byte-level BPE, as GPT-2's, or a token for each character.

In: text files or a dataset. Out: a folder for `--tokenizer_name`. The command is `gpt2-hf tokenizer`.

Both have a token for every byte, so that they write any text and give it back the same. A token for each character is
a byte-level BPE too, whose merges put together the bytes of a character and nothing else: what reads GPT-2's tokenizer
reads it, and figures per byte are exact.
"""

import contextlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..checkpoints.new_folder import refusals_in_words, require_new_folder, staged_folder
from ..errors import EXIT_OK, UserError, first_line, printable
from ..options.arguments import DataArguments, option
from ..options.values import check_values
from ..runtime.command_lines import as_typed
from .encoding import batches_of, has_text, pieces_of
from .sources import Source, load_sources
from .tokenizer import END_OF_TEXT


@dataclass
class TokenizerTrainingArguments:
    """What a tokenizer is trained on, and how large it becomes."""

    _argument_group_name = "tokenizer"

    train_file: str | None = option(None, "Text to train on: a file or a quoted glob, as for train.")
    dataset_name: str | None = option(
        None, "Instead of files: a hub id, a local folder in its layout, or python-docs."
    )
    dataset_config_name: str | None = option(None, "Config of the dataset; its default when left out.")
    text_column: str | None = option(None, "Column that holds the text; text or content when left out.")
    document_unit: Literal["line", "paragraph", "file", "row"] | None = option(
        None,
        "What is one document; when left out a line of a txt file, a whole md file, and a row of anything else.",
    )
    model_type: Literal["bpe", "char"] = option(
        "bpe", "bpe: parts of words, as GPT-2's; char: the characters of the text, rare ones as their bytes."
    )
    vocab_size: int = option(
        8192, "Vocabulary size: 256 bytes, the end of text, and the rest learned; 257: the bytes alone."
    )
    min_frequency: int = option(2, "Learn only what occurs at least this often.")
    output_dir: str = option("tokenizer", "New folder for the tokenizer.")

    def __post_init__(self) -> None:
        check_values(vars(self))
        if (self.train_file is None) == (self.dataset_name is None):
            raise UserError("--train_file: give either --train_file or --dataset_name, to say what to train on")
        if self.train_file is not None and self.dataset_config_name is not None:
            raise UserError("--dataset_config_name has no effect beside --train_file; leave it out")


def run_tokenizer_training(args: TokenizerTrainingArguments) -> int:
    """Train a tokenizer, save it, and say how it does.

    Returns:
        The exit code.

    Raises:
        UserError: if there is no text, or the folder is not empty or cannot be written; nothing is written then.
    """
    folder = require_new_folder(args.output_dir)
    _check_writable(folder)
    source = _source(args)
    train = train_tokenizer if args.model_type == "bpe" else train_character_tokenizer
    tokenizer = train(_texts(source), args.vocab_size, args.min_frequency, source.origin)
    measured = _measure(source, tokenizer)
    try:
        with staged_folder(folder) as staging:
            tokenizer.save_pretrained(staging)
    except Exception as error:  # the tokenizers library raises no other kind where the disk is full
        if isinstance(error, UserError):
            raise
        raise UserError(f"--output_dir: {folder} cannot be written ({first_line(error)})") from error
    few = (
        f" (fewer than --vocab_size {args.vocab_size:,}: nothing else that fits occurs --min_frequency "
        f"{args.min_frequency} times)"
    )
    print(f"text: {source.layout}")
    print(f"tokenizer: {len(tokenizer):,} ids{few if len(tokenizer) < args.vocab_size else ''}")
    print(
        f"on the first {measured.bytes:,} bytes of its text: {measured.bytes / max(measured.tokens, 1):.2f} bytes and "
        f"{measured.characters / max(measured.tokens, 1):.2f} characters per token"
    )
    print(printable(f"saved in {folder}; use it with --tokenizer_name {as_typed(str(folder))}"))
    return EXIT_OK


def train_tokenizer(
    texts: Iterator[list[str]], vocab_size: int, min_frequency: int = 2, origin: str = "--train_file"
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on batches of texts.

    Like GPT-2's it has an id for every byte, so that it can write any text, and one special token, the end of text.

    Args:
        texts: batches of strings.
        vocab_size: largest number of ids, at least 257: 256 bytes, the end of text, and what is learned.
        min_frequency: pairs of tokens that occur less often are not merged.
        origin: where the texts come from, for the message of the error.

    Returns:
        The tokenizer; the end of text is its bos, eos and unknown token.

    Raises:
        UserError: if there is no text.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_not_blank(texts, origin), trainer)
    return _as_tokenizer(backend)


def train_character_tokenizer(
    texts: Iterator[list[str]], vocab_size: int, min_frequency: int = 2, origin: str = "--train_file"
) -> PreTrainedTokenizerFast:
    """Give each character of batches of texts a token, the most frequent first; others are written as their bytes.

    The vocabulary also has the first bytes of a character of three or four, which its merges go by.

    Raises:
        UserError: if there is no text.
    """
    counts: Counter[str] = Counter()
    for batch in _not_blank(texts, origin):
        for text in batch:
            counts.update(text)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([END_OF_TEXT, *alphabet])}
    merges: list[tuple[str, str]] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count < min_frequency:
            break
        word = _byte_characters(character)
        new = [word[:end] for end in range(2, len(word) + 1) if word[:end] not in vocabulary]
        if len(vocabulary) + len(new) <= vocab_size:
            merges += [(token[:-1], token[-1]) for token in new]
            vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(new)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _as_tokenizer(backend)


def _byte_characters(character: str) -> str:
    """The bytes of a character as a byte-level BPE writes them, each as one character."""
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)
    return "".join(part for part, _ in parts)


def _not_blank(texts: Iterator[list[str]], origin: str) -> Iterator[list[str]]:
    """The batches; an error if there is none."""
    found = False
    for batch in texts:
        found = True
        yield batch
    if not found:
        raise UserError(f"{origin}: all documents are blank; give a file with text")


def _as_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written, before the work and not after it; leave no trace."""
    missing: list[Path] = []
    try:
        with refusals_in_words(folder, "--output_dir"):
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


def _source(args: TokenizerTrainingArguments) -> Source:
    data_args = DataArguments(
        dataset_name=args.dataset_name,
        dataset_config_name=args.dataset_config_name,
        train_file=args.train_file,
        text_column=args.text_column,
        document_unit=args.document_unit,
    )
    sources = load_sources(data_args)
    if "train" not in sources:
        raise UserError(f"--dataset_name: {args.dataset_name} has no train split; found: {', '.join(sources)}")
    return sources["train"]


def _texts(source: Source) -> Iterator[list[str]]:
    documents = (text for text, _ in source.documents() if has_text(text))
    return batches_of(itertools.chain.from_iterable(map(pieces_of, documents)))


class _Measured(NamedTuple):
    """An amount of text."""

    bytes: int
    characters: int
    tokens: int


def _measure(source: Source, tokenizer: PreTrainedTokenizerBase) -> _Measured:
    """The beginning of the text."""
    batch = next(_texts(source))
    ids = tokenizer(batch, add_special_tokens=False).input_ids
    return _Measured(sum(len(text.encode()) for text in batch), sum(map(len, batch)), sum(map(len, ids)))
