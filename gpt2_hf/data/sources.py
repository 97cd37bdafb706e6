"""Where text comes from: the hub, a folder in the hub's layout, files, or the embedded corpus.

In: `DataArguments`. Out: one `datasets.Dataset` per split with a single text column. Next stage: `tokenization`.
"""

import glob
import os
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from ..arguments import DataArguments
from ..errors import UserError
from ..hub import ensure_hub_or_offline, is_hub_id, is_local_path
from . import python_docs

SPLITS = ("train", "validation", "test")

# File name ending -> builder of the datasets library.
_BUILDERS = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")


def load_text(args: DataArguments, splits: tuple[str, ...] = SPLITS) -> tuple[dict[str, Dataset], str, list[str]]:
    """Load the text of the wanted splits.

    Returns:
        `(datasets by split, name of the text column, lines to tell the user)`. When the source has no
        validation split, one is cut from the training documents.

    Raises:
        UserError: if the source is missing, unreadable, empty, or has no such column.
    """
    if args.train_file or args.validation_file or args.test_file:
        loaded = _load_files(args)
    elif args.dataset_name == python_docs.NAME:
        loaded = {"train": python_docs.load_python_docs()}
    else:
        loaded = _load_named(args)
    text_column = _find_text_column(loaded, args.text_column)
    loaded = {split: dataset.select_columns([text_column]) for split, dataset in loaded.items()}
    notes = []
    if "validation" not in loaded and "train" in loaded and "validation" in splits:
        percentage = args.validation_split_percentage
        loaded["train"], loaded["validation"] = _cut_validation(loaded["train"], percentage)
        notes.append(
            f"no validation split: {len(loaded['validation']):,} documents, evenly spaced, are set aside, "
            f"{len(loaded['train']):,} are left ({percentage:g} %, --validation_split_percentage)"
        )
    return {split: loaded[split] for split in splits if split in loaded}, text_column, notes


def _load_files(args: DataArguments) -> dict[str, Dataset]:
    """Load train_file, validation_file and test_file, each a path or a glob."""
    loaded = {}
    for split in SPLITS:
        pattern = getattr(args, f"{split}_file")
        if pattern is None:
            continue
        paths = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
        paths = [path for path in paths if os.path.isfile(path)]
        if not paths:
            raise UserError(f"--{split}_file: no file matches {pattern!r}; give a path or a quoted glob")
        loaded[split] = _read_files(paths, f"--{split}_file")
    return loaded


def _read_files(paths: list[str], option: str) -> Dataset:
    builders = {_builder_of(path, option) for path in paths}
    if len(builders) > 1:
        raise UserError(
            f"{option}: the files are of different formats ({', '.join(sorted(builders))}); give one format"
        )
    builder = builders.pop()
    empty = [path for path in paths if os.path.getsize(path) == 0]
    if len(empty) == len(paths):
        raise UserError(f"{option}: {empty[0]} is empty; give a file with text")
    # A text file keeps its line ends: they are part of what the model learns to write.
    options: dict[str, Any] = {"keep_linebreaks": True} if builder == "text" else {}
    if builder == "csv" and all(".tsv" in path for path in paths):
        options["sep"] = "\t"
    try:
        return datasets.load_dataset(builder, data_files={"train": paths}, split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise UserError(f"{option}: {paths[0]} cannot be read as {builder}: {_first_line(cause)}") from error


def _builder_of(path: str, option: str) -> str:
    suffixes = Path(path).suffixes
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes = suffixes[:-1]
    builder = _BUILDERS.get(suffixes[-1].lower() if suffixes else "")
    if builder is None:
        known = ", ".join(sorted(_BUILDERS))
        raise UserError(f"{option}: {path} has no known ending; use one of {known} (also compressed)")
    return builder


def _load_named(args: DataArguments) -> dict[str, Dataset]:
    """Load a hub dataset, or a local folder in the hub's layout."""
    assert args.dataset_name is not None
    name = os.path.expanduser(args.dataset_name)
    if is_local_path(name) and not os.path.isdir(name):
        raise UserError(f"--dataset_name: there is no folder {name}; give a hub id, or a folder in the hub's layout")
    config_name = _choose_config(name, args)
    try:
        return dict(datasets.load_dataset(name, config_name))
    except _UNREACHABLE as error:
        raise _unreachable(name) from error
    except (
        datasets.exceptions.DatasetGenerationError,
        datasets.exceptions.DataFilesNotFoundError,
        ValueError,
    ) as error:
        raise UserError(f"--dataset_name: {name} cannot be loaded: {_first_line(error.__cause__ or error)}") from error


# What the datasets library raises when a hub id cannot be resolved, online or from its cache.
_UNREACHABLE = (ConnectionError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError)


def _choose_config(name: str, args: DataArguments) -> str | None:
    """The wanted config of a dataset, or its default if the wanted one came along from a config file for another."""
    wanted = args.dataset_config_name
    if is_hub_id(name):
        ensure_hub_or_offline()
    try:
        available = datasets.get_dataset_config_names(name)
    except _UNREACHABLE as error:
        raise _unreachable(name) from error
    if wanted is None or wanted in available:
        return wanted
    if args.dataset_config_is_inherited:
        return None
    raise UserError(f"--dataset_config_name: {name} has no config {wanted!r}; available: {', '.join(available)}")


def _unreachable(name: str) -> UserError:
    return UserError(
        f"--dataset_name: {name!r} is not in the local cache and the hub cannot be reached; point --dataset_name at "
        "a local folder in the hub's layout, or --train_file at a file, or use --dataset_name python-docs"
    )


def _find_text_column(loaded: dict[str, Dataset], wanted: str | None) -> str:
    columns = next(iter(loaded.values())).column_names
    if wanted is None:
        candidates = [name for name in ("text", "content") if name in columns]
        wanted = candidates[0] if candidates else columns[0] if len(columns) == 1 else None
        if wanted is None:
            raise UserError(f"--text_column: which of the columns holds the text? {', '.join(columns)}")
    for split, dataset in loaded.items():
        if wanted not in dataset.column_names:
            raise UserError(
                f"--text_column: the {split} split has no column {wanted!r}; it has {', '.join(dataset.column_names)}"
            )
    return wanted


def _cut_validation(train: Dataset, percentage: float) -> tuple[Dataset, Dataset]:
    """Take every so-manieth document for validation: deterministic, and from all parts of the corpus."""
    share = percentage / 100
    chosen = [i for i in range(len(train)) if int((i + 1) * share) > int(i * share)]
    if not chosen or len(chosen) == len(train):
        raise UserError(
            f"--validation_split_percentage: {percentage:g} % of {len(train)} documents leaves a split empty; "
            "give --validation_file, or another percentage"
        )
    left = sorted(set(range(len(train))) - set(chosen))
    return train.select(left), train.select(chosen)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
