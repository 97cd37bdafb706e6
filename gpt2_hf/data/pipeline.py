"""The data stage from end to end: arguments in, datasets and a collator out."""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import datasets
import numpy as np
import xxhash
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..options.arguments import DataArguments
from ..options.fields import default_value
from ..options.mixture import Mix, shares_of
from ..runtime import distributed
from .collators import FlatteningCollator, PaddingCollator
from .encoding import has_text
from .samples import Accounting, BlockSamples, DocumentSamples, MixedSamples, Samples, SequenceMode, padded_share
from .sources import SPLITS, Source, load_sources, with_notes_of_shared_files
from .streaming import StreamingSamples, set_aside_of_stream
from .tokenization import TokenizedDocuments, tokenize, tokenize_and_cut
from .tokenizer import separator_id

# Share of a validation text, above which it is said that the training text has it too.
_MUCH_THAT_IS_KNOWN = 0.01


@dataclass
class LoadedData:
    """What the data stage hands to the trainer.

    Attributes:
        samples: a map-style dataset per split; with `--streaming` the training split is `StreamingSamples`.
        collator: makes a batch of a list of samples.
        accounting: per split, where every row and token went; a streamed split has none beforehand.
        fingerprints: per split, a hash of the token ids; of a streamed split, of what it is made from.
        lines: what to tell a user who asks for everything.
        remarks: per split, what a user must know besides how much text there is.
        layouts: per split, or part of one, what is taken for the text.
        separator: in `blocks` the id between documents, which is in no fingerprint of stored text.
        documents: per split, the token ids the samples are views of.
        texts: of a mix each text by its name, with the splits that it has; empty for one text.
    """

    samples: dict[str, Dataset]
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    accounting: dict[str, Accounting]
    fingerprints: dict[str, str]
    lines: list[str]
    documents: dict[str, TokenizedDocuments]
    texts: dict[str, "LoadedData"] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    layouts: dict[str, str] = field(default_factory=dict)
    separator: int | None = None

    def summary(self) -> str:
        """One line for the user: the tokens of each split, whatever is unusual about them, and what is the text."""
        parts = []
        for split in (split for split in SPLITS if split in self.samples):
            sizes = [self.accounting[split].short()] if split in self.accounting else []
            parts.append(f"{split} {', '.join([*sizes, *self.remarks.get(split, [])])}")
        layouts = list(dict.fromkeys(self.layouts.values()))
        if len(layouts) > 1:
            layouts = [f"{part}: {layout}" for part, layout in self.layouts.items()]
        return "; ".join([*parts, *layouts])


class _Request(NamedTuple):
    """What is asked of the data stage, as the arguments of `load_data`."""

    args: DataArguments
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    splits: tuple[str, ...]
    batch_size: int
    seed: int
    inherited: Collection[str]


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
        inherited: names of options that come along from another run; without effect they are ignored.

    Returns:
        `LoadedData`: the samples of each split that is there, their collator, and what there is to say of the text.

    Raises:
        UserError: if the text cannot be read, or a split that is there has nothing to train on or to score.
    """
    with _without_progress_bars():
        data = _load_data(_Request(args, tokenizer, max_length, splits, batch_size, seed, inherited))
    if SequenceMode(args.sequence_mode) is SequenceMode.BLOCKS:
        data.separator = separator_id(tokenizer)
    return data


def load_same_data(*args: Any, **options: Any) -> LoadedData:
    """`load_data` on every process of a run; every process must ask.

    Of those of one host one fills the cache, and the others wait at its lock. Each host has a cache of its own, or
    shares one.

    Raises:
        UserError: as `load_data`; and on all processes, if they have not all read the same text.
    """
    data = load_data(*args, **options)
    first = distributed.decided_by_first(lambda: data.fingerprints)
    differs = distributed.largest_of_each(*(first.get(split) != data.fingerprints.get(split) for split in SPLITS))
    if any(differs):
        names = " and ".join(split for split, other in zip(SPLITS, differs, strict=True) if other)
        raise UserError(
            f"the {names} text, or its tokenizer, is not the same on every host; copy the same files to all of them, "
            "or put them on a disk that all share"
        )
    return data


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


def _load_data(request: _Request) -> LoadedData:
    args = request.args
    if args.train_mix is not None:
        return _load_mix(request)
    sources = load_sources(args)
    if "validation" in sources:
        _settle_percentage(args, request.inherited)
    data = _load_text(request, sources)
    for split in data.documents:
        _limit(split, data, args)
        _account(data, split, request, sources)
    if "train" in data.samples and args.streaming:
        data.lines.append(
            f"train: streamed, nothing is stored; documents are shuffled {args.shuffle_buffer_size:,} at a time "
            "(--shuffle_buffer_size)"
        )
        data.remarks["train"] = ["streamed", *(["CUT at max_length (--truncate)"] if args.truncate else [])]
        _say_layout(data, "train", sources["train"])
    return data


def _load_text(request: _Request, sources: dict[str, Source], name: str | None = None) -> LoadedData:
    """The samples of one text; `name` is what it is called among several."""
    args, tokenizer, max_length = request.args, request.tokenizer, request.max_length
    streamed = "train" if args.streaming and "train" in request.splits and "train" in sources else None
    documents, lines, remarks = _tokenize_splits(request, sources, streamed)
    if name is not None:
        lines = [f"{name}: {line}" for line in lines]
    data = LoadedData({}, make_collator(args, tokenizer, max_length), {}, {}, lines, documents, remarks=remarks)
    for split, split_documents in documents.items():
        source = sources[split if split in sources else "train"]  # a validation split may be cut off
        samples = _non_empty_samples(split, split_documents, source, request)
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
            seed=request.seed,
            buffer_size=args.shuffle_buffer_size,
            set_aside_percentage=args.validation_split_percentage if cut else None,
            num_threads=args.preprocessing_num_workers,
        )
        data.samples[streamed] = stream
        data.fingerprints[streamed] = stream.key()
    return data


def _account(
    data: LoadedData, split: str, request: _Request, sources: dict[str, Source], name: str | None = None
) -> None:
    """Say where every row and token of a split went; `name` is what its text is called among several."""
    samples = data.samples[split]
    assert isinstance(samples, Samples)
    share = _batch_share(request, samples.lengths)
    data.accounting[split] = dataclasses.replace(samples.accounting, batch_share=share)
    label = split if name is None else f"{split} of {name}"
    data.lines.append(data.accounting[split].line(label))
    if split in sources:
        _say_layout(data, label, sources[split])


def _say_layout(data: LoadedData, label: str, source: Source) -> None:
    data.layouts[label] = source.layout
    data.lines.append(f"{label}: {source.layout}")


# ---- several texts ----


def _load_mix(request: _Request) -> LoadedData:
    """Each text by itself, then all of them as one."""
    args = request.args
    assert isinstance(args.train_mix, dict)
    texts: dict[str, LoadedData] = {}
    sources: dict[str, dict[str, Source]] = {}
    for name in args.train_mix:
        with _named(name):
            sources[name] = load_sources(_arguments_of(args, name))
            if "train" not in sources[name]:
                raise UserError(f"there is no train split; found: {', '.join(sources[name]) or 'none'}")
    if all("validation" in found for found in sources.values()):
        _settle_percentage(args, request.inherited)
    for name, found in with_notes_of_shared_files(sources).items():
        with _named(name):
            # of a text that has a validation split nothing is cut, so that the percentage is without effect for it
            texts[name] = _load_text(request._replace(args=_arguments_of(args, name)), found, name)
            for split in texts[name].documents:
                _account(texts[name], split, request, found, name)
    collator = make_collator(args, request.tokenizer, request.max_length)
    lines = [line for text in texts.values() for line in text.lines]
    layouts = {label: layout for text in texts.values() for label, layout in text.layouts.items()}
    data = LoadedData({}, collator, {}, {}, lines, {}, texts, layouts=layouts)
    for split in request.splits:
        _mix_split(split, data, request)
    return data


def _mix_split(split: str, data: LoadedData, request: _Request) -> None:
    """Put one split of several texts together; a test split is that of the texts that have one."""
    args = request.args
    assert isinstance(args.train_mix, dict)
    there = {name: text for name, text in data.texts.items() if split in text.samples}
    if not there:
        return
    shares = shares_of(args.train_mix) if split == "train" else None
    samples = MixedSamples({name: text.samples[split] for name, text in there.items()}, shares)
    data.samples[split] = samples
    _limit(split, data, args)
    if shares is not None:
        for name, (_, count) in zip(samples.texts, samples.mixture, strict=True):
            if not count:
                raise UserError(
                    f"--train_mix {name}: with weight {args.train_mix[name]['weight']:g} there is no sample of it in "
                    f"an epoch of {len(samples):,}; give a larger one, or leave the text out"
                )
        data.lines += _describe_mixture(samples, args.train_mix)
    names = ", ".join(there if shares is None else (f"{name} {100 * share:.0f} %" for name, share in shares.items()))
    remarks = [f"{name}: {remark}" for name, text in there.items() for remark in text.remarks.get(split, ())]
    data.remarks.setdefault(split, [])[:0] = [f"of {names}", *remarks]
    share = _batch_share(request, samples.epoch_lengths)
    data.accounting[split] = dataclasses.replace(samples.accounting, batch_share=share)
    data.documents[split] = TokenizedDocuments.joined([text.documents[split] for text in there.values()])
    parts = [(name, text.fingerprints[split], shares and shares[name]) for name, text in there.items()]
    data.fingerprints[split] = xxhash.xxh3_128_hexdigest(repr(parts).encode())


def _describe_mixture(samples: MixedSamples, mix: Mix) -> list[str]:
    """How much of an epoch is of which text, and how often it is read."""
    mixture = dict(zip(samples.texts, samples.mixture, strict=True))
    tokens = {name: float(samples.texts[name].lengths.mean()) * count for name, (_, count) in mixture.items()}
    lines = [f"train: an epoch has {len(samples):,} samples, as many as all {len(mixture)} texts together"]
    for name, (size, count) in mixture.items():
        lines.append(
            f"train: {name} is read {count / size:.2f} times per epoch: {count:,} samples from {size:,} (weight "
            f"{mix[name]['weight']:g}), {count / len(samples):.1%} of the samples and "
            f"{tokens[name] / sum(tokens.values()):.1%} of the scored tokens"
        )
    return lines


def _arguments_of(args: DataArguments, name: str) -> DataArguments:
    """The arguments of one text of a mix: what is said of it, and what is said of all."""
    assert isinstance(args.train_mix, dict)
    stated = {key: value for key, value in args.train_mix[name].items() if key != "weight"}
    empty: dict[str, Any] = dict.fromkeys(("dataset_name", "dataset_config_name"))
    limits: dict[str, Any] = dict.fromkeys(("max_train_samples", "max_eval_samples"))  # they are of all texts
    return dataclasses.replace(args, train_mix=None, **{**empty, **limits, **stated})


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which text of a mix an error is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--train_mix {name}: {error}") from error


def _settle_percentage(args: DataArguments, inherited: Collection[str]) -> None:
    """Refuse a share to set aside where there is a validation split; if it came along, the arguments forget it."""
    name = "validation_split_percentage"
    default = default_value(DataArguments, name)
    if name in inherited:
        args.validation_split_percentage = default
    if args.validation_split_percentage != default:
        raise UserError(f"--{name} has no effect: there is a validation split; leave it out")


class _Tokenized(NamedTuple):
    """The splits of a text that are not streamed, and what there is to tell of them, as in `LoadedData`."""

    documents: dict[str, TokenizedDocuments]
    lines: list[str]
    remarks: dict[str, list[str]]


def _tokenize_splits(request: _Request, sources: dict[str, Source], streamed: str | None) -> _Tokenized:
    """The token ids of every wanted split that is not streamed; a validation split is cut off if there is none."""
    args, tokenizer, splits = request.args, request.tokenizer, request.splits
    workers, percentage = args.preprocessing_num_workers, args.validation_split_percentage
    joined = args.join_documents
    documents, lines, remarks = _Tokenized({}, [], {})
    missing = "validation" not in sources and "train" in sources and {"train", "validation"} & set(splits)
    if missing and args.streaming:
        source, note = set_aside_of_stream(sources["train"], percentage)
        lines.append(note)
        documents["validation"] = tokenize(source, tokenizer, workers)
        if not len(documents["validation"]):
            _check_divisible(sum(has_text(text) for text, _ in sources["train"].documents()))
        remarks["validation"] = [f"{percentage:g} % of the first documents set aside"]
    elif missing:
        rest, cut, known_tokens, count = tokenize_and_cut(sources["train"], tokenizer, percentage, workers, joined)
        documents = {"train": rest, "validation": cut}
        if not len(cut):
            _check_divisible(count)
        lines.append(
            f"no validation split: {len(cut):,} documents, evenly spaced, are set aside, {count - len(cut):,} are "
            f"left ({percentage:g} %, --validation_split_percentage)"
        )
        if "validation" in splits:
            remarks["validation"] = [f"{percentage:g} % of the documents set aside"]
            if known_tokens > _MUCH_THAT_IS_KNOWN * cut.num_tokens:
                remarks["validation"].append(
                    f"{known_tokens / cut.num_tokens:.0%} OF IT IN DOCUMENTS THAT THE TRAINING TEXT HAS TOO, so its "
                    "loss will be too low (take repeated documents out)"
                )
    for split in splits:
        if split in sources and split not in documents and split != streamed:
            documents[split] = tokenize(sources[split], tokenizer, workers, joined)
    return _Tokenized({split: documents[split] for split in splits if split in documents}, lines, remarks)


def _check_divisible(count: int) -> None:
    """Refuse so few documents with text that none of them is set aside; without any the text itself is refused."""
    if count:
        raise UserError(
            f"--validation_split_percentage: {count:,} document{'s' * (count != 1)} cannot be divided; "
            "give --validation_file, or cut finer with --document_unit"
        )


def _non_empty_samples(
    split: str,
    documents: TokenizedDocuments,
    source: Source,
    request: _Request,
) -> Samples:
    in_training = split == "train"
    samples = make_samples(documents, request.args, request.tokenizer, request.max_length, for_training=in_training)
    if not len(samples):
        counts = f"{samples.accounting.rows:,} rows, {samples.accounting.blank_rows:,} blank"
        raise UserError(
            f"{source.origin}: the {split} split has no text to use ({counts}), "
            "and a document of a single token has nothing to predict; give another text, --text_column or "
            "--document_unit"
        )
    return samples


def _limit(split: str, data: LoadedData, args: DataArguments) -> None:
    samples = data.samples[split]
    assert isinstance(samples, Samples)
    option = "max_train_samples" if split == "train" else "max_eval_samples"
    limit = getattr(args, option)
    if isinstance(samples, MixedSamples) and limit is not None and limit < len(samples.texts):
        raise UserError(f"--{option} {limit}: each of the {len(samples.texts)} texts needs a sample; give more")
    if limit is not None and limit < len(samples):
        share = f"{limit:,} of {len(samples):,} samples"
        samples.limit(limit)
        scored = int(samples.lengths.sum())
        data.remarks.setdefault(split, []).append(f"only {share} used (--{option})")
        of_each = " (of each text, in proportion to its size)" if isinstance(samples, MixedSamples) else ""
        data.lines.append(
            f"{split}: only the first {limit:,} samples{of_each} are used, {scored:,} scored tokens (--{option})"
        )


def _batch_share(request: _Request, lengths: np.ndarray) -> float:
    if SequenceMode(request.args.sequence_mode) is SequenceMode.PADDING_FREE:
        return 1.0
    return padded_share(lengths, request.batch_size, request.max_length if request.args.pad_to_max_length else None)


def make_samples(
    documents: TokenizedDocuments,
    args: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    for_training: bool = False,
) -> Samples:
    """Cut documents into samples as `--sequence_mode` says."""
    if SequenceMode(args.sequence_mode) is SequenceMode.BLOCKS:
        circular = for_training and args.shift_blocks
        return BlockSamples(documents, max_length, separator_id(tokenizer), args.join_documents, circular)
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
