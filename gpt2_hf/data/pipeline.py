"""The data stage from end to end: arguments in, datasets and a collator out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedTokenizerBase

from ..arguments import DataArguments
from ..errors import UserError
from ..tokenizer import separator_id
from .collators import FlatteningCollator, PaddingCollator
from .samples import Accounting, BlockSamples, DocumentSamples, Samples, SequenceMode
from .sources import SPLITS, load_text
from .tokenization import TokenizedDocuments, tokenize


@dataclass
class LoadedData:
    """What the data stage hands to the trainer.

    Attributes:
        samples: a map-style dataset per split.
        collator: makes a batch of a list of samples.
        accounting: per split, where every row and token went.
        fingerprints: per split, a hash of the token ids.
        lines: what to tell the user.
        documents: per split, the token ids the samples are views of.
    """

    samples: dict[str, Dataset]
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    accounting: dict[str, Accounting]
    fingerprints: dict[str, str]
    lines: list[str]
    documents: dict[str, TokenizedDocuments]


def load_data(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    splits: tuple[str, ...] = SPLITS,
) -> LoadedData:
    """Load, tokenise and cut the wanted splits into samples of at most `max_length` positions.

    Raises:
        UserError: if a split that is there has nothing to train on or to score.
    """
    datasets.disable_progress_bars()
    texts, text_column, lines = load_text(args, splits)
    documents = {
        split: tokenize(text, text_column, tokenizer, args.preprocessing_num_workers) for split, text in texts.items()
    }
    samples: dict[str, Dataset] = {}
    accounting = {}
    for split, split_documents in documents.items():
        built = make_samples(split_documents, args, tokenizer, max_length)
        if len(built) == 0:
            raise UserError(
                f"the {split} split has no text to use ({built.accounting.rows:,} rows, "
                f"{built.accounting.blank_rows:,} blank); check --text_column and the files"
            )
        accounting[split] = built.accounting
        lines.append(built.accounting.line(split))
        limit = args.max_train_samples if split == "train" else args.max_eval_samples
        samples[split] = built if limit is None or limit >= len(built) else Subset(built, range(limit))
        if samples[split] is not built:
            option = "max_train_samples" if split == "train" else "max_eval_samples"
            lines.append(f"{split}: only the first {limit:,} samples are used (--{option})")
    return LoadedData(
        samples=samples,
        collator=make_collator(args, tokenizer, max_length),
        accounting=accounting,
        fingerprints={split: split_documents.fingerprint() for split, split_documents in documents.items()},
        lines=lines,
        documents=documents,
    )


def make_samples(
    documents: TokenizedDocuments, args: DataArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Samples:
    """Cut documents into samples as `--sequence_mode` says."""
    if SequenceMode(args.sequence_mode) is SequenceMode.BLOCKS:
        return BlockSamples(documents, max_length, separator_id(tokenizer))
    return DocumentSamples(documents, max_length, args.truncate)


def make_collator(
    args: DataArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> FlatteningCollator | PaddingCollator:
    """The collator of `--sequence_mode`."""
    if SequenceMode(args.sequence_mode) is SequenceMode.PADDING_FREE:
        return FlatteningCollator()
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad_token_id = next(token_id for token_id in candidates if token_id is not None)
    return PaddingCollator(pad_token_id, max_length if args.pad_to_max_length else None)
