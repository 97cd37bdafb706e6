"""The data stage from end to end: arguments in, datasets and a collator out."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..options.arguments import DataArguments
from .collators import FlatteningCollator, PaddingCollator
from .samples import Accounting, BlockSamples, DocumentSamples, Samples, SequenceMode, padded_share
from .sources import SPLITS, Source, load_sources
from .streaming import StreamingSamples, set_aside_of_stream
from .tokenization import TokenizedDocuments, tokenize, tokenize_and_cut
from .tokenizer import separator_id


@dataclass
class LoadedData:
    """What the data stage hands to the trainer.

    Attributes:
        samples: a map-style dataset per split; with `--streaming` the training split is `StreamingSamples`.
        collator: makes a batch of a list of samples.
        accounting: per split, where every row and token went; a streamed split has none beforehand.
        fingerprints: per split, a hash of the token ids; of a streamed split, of what it is made from.
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
    batch_size: int = 8,
    seed: int = 42,
    inherited: Collection[str] = (),
) -> LoadedData:
    """Load, tokenise and cut the wanted splits into samples of at most `max_length` positions.

    Args:
        args: the text, and how it becomes samples.
        tokenizer: makes the token ids.
        max_length: longest sample, in scored positions.
        splits: which splits to load; those that are not there are left out.
        batch_size: samples of a batch, for the line that says how much of it is text.
        seed: order of a streamed split.
        inherited: names of options that come along from another run; without effect they are passed over.

    Raises:
        UserError: if the text cannot be read, or a split that is there has nothing to train on or to score.
    """
    with _without_progress_bars():
        return _load_data(args, tokenizer, max_length, splits, batch_size, seed, inherited)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Of the datasets library, for as long as the context lasts."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _load_data(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    splits: tuple[str, ...],
    batch_size: int,
    seed: int,
    inherited: Collection[str],
) -> LoadedData:
    sources = load_sources(args)
    if "validation" in sources:
        _settle_percentage(args, inherited)
    lines: list[str] = []
    streamed = "train" if args.streaming and "train" in splits and "train" in sources else None
    documents = _tokenize_splits(args, tokenizer, sources, splits, streamed, lines)
    data = LoadedData({}, make_collator(args, tokenizer, max_length), {}, {}, lines, documents)
    for split, split_documents in documents.items():
        source = sources[split if split in sources else "train"]  # a validation split may be cut off
        samples = _non_empty_samples(split, split_documents, source, args, tokenizer, max_length)
        _limit(split, samples, args, lines)
        share = _batch_share(args, samples, max_length, batch_size)
        data.accounting[split] = dataclasses.replace(samples.accounting, batch_share=share)
        lines.append(data.accounting[split].line(split))
        if split in sources:
            lines.append(f"{split}: {source.layout}")
        data.samples[split] = samples
        data.fingerprints[split] = split_documents.fingerprint()
    if streamed is not None:
        cut = "validation" not in sources
        stream = StreamingSamples(
            sources[streamed],
            tokenizer,
            max_length,
            mode=SequenceMode(args.sequence_mode),
            truncate=args.truncate,
            seed=seed,
            buffer_size=args.shuffle_buffer_size,
            set_aside_percentage=args.validation_split_percentage if cut else None,
        )
        data.samples[streamed] = stream
        data.fingerprints[streamed] = stream.key()
        lines.append(
            f"{streamed}: streamed, nothing is stored; documents are shuffled {args.shuffle_buffer_size:,} at a time "
            "(--shuffle_buffer_size)"
        )
        lines.append(f"{streamed}: {sources[streamed].layout}")
    return data


def _settle_percentage(args: DataArguments, inherited: Collection[str]) -> None:
    """Refuse a share to set aside where there is a validation split; if it came along, the arguments forget it."""
    name = "validation_split_percentage"
    default: Any = DataArguments.__dataclass_fields__[name].default
    if name in inherited:
        args.validation_split_percentage = default
    if args.validation_split_percentage != default:
        raise UserError(f"--{name} has no effect: there is a validation split; leave it out")


def _tokenize_splits(
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    sources: dict[str, Source],
    splits: tuple[str, ...],
    streamed: str | None,
    lines: list[str],
) -> dict[str, TokenizedDocuments]:
    """The token ids of every wanted split that is not streamed; a validation split is cut off if there is none."""
    workers, percentage = args.preprocessing_num_workers, args.validation_split_percentage
    documents: dict[str, TokenizedDocuments] = {}
    missing = "validation" not in sources and "train" in sources and {"train", "validation"} & set(splits)
    if missing and args.streaming:
        source, note = set_aside_of_stream(sources["train"], percentage)
        lines.append(note)
        documents["validation"] = tokenize(source, tokenizer, workers)
    elif missing:
        rest, cut = tokenize_and_cut(sources["train"], tokenizer, percentage, workers)
        documents = {"train": rest, "validation": cut}
        if len(rest) and not len(cut):
            raise UserError(
                f"--validation_split_percentage: {len(rest):,} document{'s' * (len(rest) != 1)} cannot be divided; "
                "give --validation_file, or cut finer with --document_unit"
            )
        lines.append(
            f"no validation split: {len(cut):,} documents, evenly spaced, are set aside, {len(rest):,} are left "
            f"({percentage:g} %, --validation_split_percentage)"
        )
    for split in splits:
        if split in sources and split not in documents and split != streamed:
            documents[split] = tokenize(sources[split], tokenizer, workers)
    return {split: documents[split] for split in splits if split in documents}


def _non_empty_samples(
    split: str,
    documents: TokenizedDocuments,
    source: Source,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Samples:
    samples = make_samples(documents, args, tokenizer, max_length)
    if not len(samples):
        counts = f"{samples.accounting.rows:,} rows, {samples.accounting.blank_rows:,} blank"
        raise UserError(
            f"{source.origin}: the {split} split has no text to use ({counts}), "
            "and a document of a single token has nothing to predict; give another text, --text_column or "
            "--document_unit"
        )
    return samples


def _limit(split: str, samples: Samples, args: DataArguments, lines: list[str]) -> None:
    option = "max_train_samples" if split == "train" else "max_eval_samples"
    limit = getattr(args, option)
    if limit is not None and limit < len(samples):
        samples.limit(limit)
        scored = int(samples.lengths.sum())
        lines.append(f"{split}: only the first {limit:,} samples are used, {scored:,} scored tokens (--{option})")


def _batch_share(args: DataArguments, samples: Samples, max_length: int, batch_size: int) -> float:
    if SequenceMode(args.sequence_mode) is SequenceMode.PADDING_FREE:
        return 1.0
    return padded_share(samples.lengths, batch_size, max_length if args.pad_to_max_length else None)


def make_samples(
    documents: TokenizedDocuments, args: DataArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Samples:
    """Cut documents into samples as `--sequence_mode` says."""
    if SequenceMode(args.sequence_mode) is SequenceMode.BLOCKS:
        return BlockSamples(documents, max_length, separator_id(tokenizer), args.join_documents)
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
