"""--dataset_name: python-docs, a folder, or an id of the hub to sources, with the datasets library."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
import yaml
from datasets import Dataset, IterableDataset
from datasets.data_files import FILES_TO_IGNORE
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from datasets.utils.metadata import MetadataConfigs

from ...errors import UserError, first_line, in_one_line, printable
from ...options.arguments import DataArguments, Preferred
from ...runtime.command_lines import as_typed
from ...runtime.hub import CONNECTION_ERRORS, ensure_hub_or_offline, is_hub_id, is_local_path
from .. import python_docs
from ..cache import entry_key
from ..fingerprints import cache_root, file_key
from ..folders import PlainFolder, configs_of_card, files_that_are_here, plain_folder, visible_files
from ..readers import DocumentUnit, not_text, text_file
from .columns import find_text_column, unit_of_rows
from .files import check_columns, contamination, file_source, first_names, with_note
from .source import SPLITS, RowSource, Source

# Of a builder's config: which files, what they are called, and the separator, which `readers` take.
_NO_READING_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features", "sep", "delimiter"}
# By their names the datasets library knows tasks of Harbor, and makes rows of them.
_FILES_OF_HARBOR = ("task.toml", "instruction.md")
# What others call the split `validation`; the library knows these names of files, but not of splits.
_NAMES_OF_VALIDATION = ("valid", "val", "dev")
# How the library says that a dataset, or what its cache has of it, lacks a config.
_LACKS_CONFIG = re.compile(r"(?:not found\. Available|Available configs in the (?P<cache>cache)): \[(?P<names>.*)\]")


def sources_of_name(args: DataArguments) -> dict[str, Source]:
    """What `dataset_name` and `dataset_config_name` stand for."""
    assert args.dataset_name is not None
    if args.dataset_name == python_docs.NAME:
        if args.dataset_config_name == DataArguments.dataset_config_name:
            args.dataset_config_name = None  # the records of earlier runs state it
        _refuse_config(args, f"{python_docs.NAME} has no configs")
        return {"train": _row_source("train", python_docs.load_python_docs(), args)}
    name = os.path.expanduser(args.dataset_name)
    _refuse_other_names(name)
    if is_hub_id(name):
        ensure_hub_or_offline()
    try:
        if os.path.isdir(name):
            return _sources_of_folder(name, args)
        return _sources_on_hub(_builder_on_hub(name, args), args)
    except (ConnectionError, FileNotFoundError) as error:
        raise _not_found(name, error) from error
    except yaml.YAMLError as error:
        raise UserError(
            f"--dataset_name: {name} has a card, its README.md, whose lines between --- are no YAML "
            f"({in_one_line(error)}); quote what holds a colon, or take the lines out"
        ) from error
    # scripts: RuntimeError; formats that need another package: ImportError
    except (datasets.exceptions.DatasetsError, ImportError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        _, _, configs = str(error).partition("Please pick one among the available configs: ")
        if configs:
            raise _several_configs(args, configs.splitlines()[0]) from error
        raise UserError(f"--dataset_name: {name} cannot be loaded: {first_line(error.__cause__ or error)}") from error
    except CONNECTION_ERRORS as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--dataset_name: {name} cannot be loaded: {reason}") from error


def _refuse_other_names(name: str) -> None:
    """Refuse what is neither a folder nor a name on the hub."""
    if os.path.isdir(name):
        return
    if os.path.isfile(name):
        raise UserError(f"--dataset_name: {name} is a file; give --train_file {as_typed(name)}")
    if is_local_path(name):
        raise UserError(f"--dataset_name: there is no folder {name}; give a hub id, or a folder in the hub's layout")
    if name.startswith(("https://", "http://")):
        words = name.partition("/datasets/")[2].split("/")[:2]
        raise UserError(
            f"--dataset_name: {name} is an address; give the name on the hub, {'/'.join(words) or 'USER/NAME'}"
        )
    if name in _PACKAGED_DATASETS_MODULES:  # the library would read everything in the current folder
        raise UserError(
            f"--dataset_name: {name} is a format, and there is no such folder; give --train_file 'FOLDER/**/*'"
        )


def _builder_on_hub(name: str, args: DataArguments) -> Any:
    """The builder of the library for the wanted config, or for the default one where a preferred one is missing.

    A list of configs is not asked for: without a network the library has none, and still reads what is in its cache.
    """
    wanted = args.dataset_config_name
    try:
        return datasets.load_dataset_builder(name, wanted)
    except ValueError as error:
        lacks = _LACKS_CONFIG.search(str(error))
        if wanted is None or lacks is None:
            raise
        # of the default dataset it is the very text that is meant, and the cache may hold another one
        if isinstance(wanted, Preferred) and name != DataArguments.dataset_name:
            args.dataset_config_name = None
            return datasets.load_dataset_builder(name)
        there = lacks["names"].replace("'", "")
        if lacks["cache"]:
            raise UserError(
                f"--dataset_config_name: the hub cannot be reached, and of {name} the local cache has no config "
                f"{wanted!r}, only: {there}; choose one of these, or load it once with a network"
            ) from error
        raise _no_config(args, there) from error


def _sources_on_hub(builder: Any, args: DataArguments) -> dict[str, Source]:
    """What the library reads from the hub, stored or streamed."""
    if args.streaming:
        return _rows_of(builder, args, f"{builder.config_id} {builder.hash} None")
    builder.download_and_prepare()
    return _rows_of(builder, args)


def _sources_of_library(
    load: Callable[..., Any], args: DataArguments, files: Mapping[str, Sequence[str]]
) -> dict[str, Source]:
    """What the builder that `load` gives reads of these files of each split, stored or streamed.

    Its caches follow the names of local files, at most their dates too; each content of them has caches of its own.
    """
    content = "streamed" if args.streaming else _content_key(files)
    builder = load(cache_dir=str(cache_root() / "library" / content))
    for split, paths in builder.config.data_files.items():
        paths[:] = files[str(split)]
    # the library's hash goes by their places and dates
    version = f"{builder.config.name} {_reading_options(builder.config)} {content}"
    if args.streaming:  # the library stores nothing
        return _rows_of(builder, args, version, files)
    # unchecked, as streams are: of the rows that the card counts some may not be here
    builder.download_and_prepare(verification_mode="no_checks")
    return _rows_of(builder, args, version)


# What the library takes off the end of each part of a text, by how it is cut.
_TAKEN_OFF = {"line": "\n", "paragraph": "\n\n"}


def _rows_of(
    builder: Any, args: DataArguments, version: str = "", files: Mapping[str, Sequence[str]] | None = None
) -> dict[str, Source]:
    """The rows of a builder; those of plain text get back the line ends that the library takes off."""
    is_text = builder.info.builder_name == "text"
    # the cache does not say how a text was cut: line by line, unless a card asks for something else
    if (
        is_text
        and args.document_unit == DocumentUnit.PARAGRAPH
        and getattr(builder.config, "sample_by", "line") == "line"
    ):
        raise UserError(
            f"--document_unit paragraph: the datasets library reads {args.dataset_name} line by line; unpack or "
            "download its text files and give --train_file, or leave the option out"
        )
    loaded = builder.as_streaming_dataset() if args.streaming else builder.as_dataset()
    sources = _row_sources(dict(loaded), args, version, files)
    if not is_text:
        return sources
    return {
        split: dataclasses.replace(source, line_end=_TAKEN_OFF.get(getattr(builder.config, "sample_by", "line"), ""))
        for split, source in sources.items()
        if isinstance(source, RowSource)
    }


def _sources_of_folder(name: str, args: DataArguments) -> dict[str, Source]:
    marks = (("state.json", "dataset_info.json"), ("dataset_dict.json",))
    if any(all(os.path.isfile(os.path.join(name, file)) for file in files) for files in marks):
        return _sources_of_disk(name, args)
    with plain_folder(name) as folder:
        configs = configs_of_card(folder.path)
        config_name = _choose_config(configs, args)
        here = files_that_are_here(folder.path, configs, config_name)
        if here == {}:
            raise UserError(
                f"--dataset_name: of the files that the card of {name}, its README.md, names for the config "
                f"{config_name!r} none is here; fetch them too, or take the card away"
            )
        load = functools.partial(datasets.load_dataset_builder, folder.path, config_name, data_files=here)
        config: Any = load().config
        sources = _sources_of_files_in(folder, config, args)
        if sources is None and folder.is_copy:
            raise UserError(
                f"--dataset_name: only the datasets library can read the files of {name}, and it cannot take their "
                "names; rename folder and files to letters, digits, spaces and . - _"
            )
        if sources is None:
            sources = _sources_of_library(load, args, _files_of(folder, config))
        notes = _shared_with_training(folder, config, args)
        if not {"data_files", "data_dir"} & configs.get(config.name, {}).keys():  # its author has not chosen them
            notes.append(_unread_files(name, folder, config))
        return with_note(sources, "; ".join(filter(None, notes)))


def _files_of(folder: PlainFolder, config: Any) -> dict[str, list[str]]:
    """The files of each split, each once: several patterns of the library, and links, may give the same one."""
    found: dict[str, list[str]] = {}
    for split, paths in config.data_files.items():
        once: dict[str, str] = {}
        for path in map(folder.original, map(str, paths)):
            once.setdefault(os.path.realpath(path), path)
        found[str(split)] = list(once.values())
    return found


def _content_key(files: Mapping[str, Sequence[str]]) -> str:
    """A name for what files hold, split by split; what is not on this machine goes by its address."""
    parts: list[str] = []
    for split, paths in files.items():
        parts += [split, *(file_key(path) if os.path.isfile(path) else path for path in paths)]
    return entry_key(*parts)


def _known_splits(found: Mapping[str, Any], args: DataArguments) -> tuple[dict[str, Any], str]:
    """The splits by the names that they have here, and a note about what is left out or was called otherwise.

    Raises:
        UserError: if all have other names.
    """
    known = {split: found[split] for split in SPLITS if split in found}
    others = [name for name in found if name not in known]
    notes = []
    candidates = [name for name in others if name in _NAMES_OF_VALIDATION]
    if "validation" not in known and len(candidates) == 1:
        known["validation"] = found[candidates[0]]
        others.remove(candidates[0])
        notes.append(f"the split {candidates[0]!r} is the validation text")
    if others and not known:
        raise UserError(
            f"--dataset_name: {args.dataset_name} has the split{'s' if len(others) > 1 else ''} "
            f"{', '.join(map(repr, others))}, and none of {', '.join(SPLITS)}; "
            "give its files with --train_file, or say in its card which split they belong to"
        )
    if others:
        notes.append(f"NOT READ: the split{'s' if len(others) > 1 else ''} {', '.join(map(repr, others))}")
    return known, printable("; ".join(notes))


def _shared_with_training(folder: PlainFolder, config: Any, args: DataArguments) -> list[str]:
    """For the user, of each split that is scored: which of its files are trained on too."""
    known, _ = _known_splits(_files_of(folder, config), args)
    return [
        contamination(known[split], known.get("train", ()), f"{split} files", f"{split} loss")
        for split in SPLITS[1:]
        if split in known
    ]


def _sources_of_disk(name: str, args: DataArguments) -> dict[str, Source]:
    """What `save_to_disk` of the datasets library has written; a dataset without splits is the training split."""
    _refuse_config(args, f"{name} was written by save_to_disk, without configs")
    loaded = datasets.load_from_disk(name, keep_in_memory=False)  # in memory rows would not know their files
    splits = {"train": loaded} if isinstance(loaded, Dataset) else loaded
    # the fingerprint goes by what was done to the rows, not by what it gave
    files = {split: [file["filename"] for file in rows.cache_files] for split, rows in splits.items()}
    return _row_sources(splits, args, files=files)


def _sources_of_files_in(folder: PlainFolder, config: Any, args: DataArguments) -> dict[str, Source] | None:
    """The files that the hub's layout gives to each split; `None` if `readers` do not know how they are to be read."""
    if type(config).__name__ not in ("TextConfig", "JsonConfig", "CsvConfig", "ParquetConfig", "HarborConfig"):
        return None
    if _has_reading_options(config) or len(getattr(config, "sep", ",") or "") != 1:
        return None
    found = _files_of(folder, config)
    if any(path.endswith(".zip") for paths in found.values() for path in paths):  # which `readers` do not open
        return None
    if type(config).__name__ == "HarborConfig":  # what the library makes of md files, whether or not they are Harbor's
        if any(os.path.basename(path) in _FILES_OF_HARBOR for paths in found.values() for path in paths):
            return None
        found = {split: texts for split, paths in found.items() if (texts := list(filter(_is_text, paths)))}
        if not found:
            return None
    known, note = _known_splits(found, args)
    sources: dict[str, Source] = {}
    for split, paths in known.items():
        files = [text_file(path, "--dataset_name") for path in paths]
        if getattr(config, "sep", ",") != ",":
            files = [dataclasses.replace(file, delimiter=config.sep) for file in files]
        sources[split] = file_source(split, files, args)
    check_columns(sources.values(), args)
    return with_note(sources, note)


def _is_text(path: str) -> bool:
    """Whether `readers` know the ending."""
    try:
        text_file(path, "--dataset_name")
    except UserError:
        return False
    return True


def _unread_files(name: str, folder: PlainFolder, config: Any) -> str:
    """For the user: the text files of a folder that are in no split; "" if there are none."""
    given = {os.path.realpath(path) for paths in _files_of(folder, config).values() for path in paths}
    files = visible_files(name)
    texts = list(filter(_is_text, files))
    unread = [os.path.relpath(path, name) for path in texts if os.path.realpath(path) not in given]
    if not unread:
        return ""
    names = first_names(unread)
    described = any(os.path.exists(os.path.join(name, file)) for file in FILES_TO_IGNORE)  # a glob would read these
    if set(config.data_files) == {"train"} and texts == files and not described:
        remedy = f"to read all use --train_file {as_typed(os.path.join(name, '**', '*'))}"
    else:
        remedy = "to read them name the files of each split: --train_file, --validation_file, --test_file"
    return printable(f"NOT READ: {len(unread):,} of the {len(texts):,} text files in the folder ({names}); {remedy}")


def _has_reading_options(config: Any) -> bool:
    """Whether a data set's card says how its files are read, such as `sample_by` or `skiprows`."""
    usual = type(config)()
    names = {field.name for field in dataclasses.fields(config)} - _NO_READING_OPTIONS
    return any(getattr(config, name) != getattr(usual, name) for name in names)


def _reading_options(config: Any) -> dict[str, Any]:
    """Everything that a config says but which files there are."""
    fields = (field.name for field in dataclasses.fields(config) if field.name not in ("data_files", "data_dir"))
    return {"type": type(config).__name__, **{name: getattr(config, name) for name in fields}}


def _refuse_config(args: DataArguments, why: str) -> None:
    """Refuse the name of a config where there are none; the arguments forget one that came along."""
    if args.dataset_config_name is not None and not isinstance(args.dataset_config_name, Preferred):
        raise UserError(f"--dataset_config_name: {why}; leave it out")
    args.dataset_config_name = None


def _choose_config(configs: MetadataConfigs, args: DataArguments) -> str | None:
    """The wanted config of a folder, or its default where it lacks one that was merely preferred.

    Then the arguments forget it, so that the record of the run does not ask this dataset for it.
    """
    wanted, available = args.dataset_config_name, list(configs) or ["default"]
    if wanted in available:
        return wanted
    if wanted is not None and not isinstance(wanted, Preferred):
        raise _no_config(args, ", ".join(available))
    args.dataset_config_name = None
    default = configs.get_default_config_name()
    if default is None and configs:
        raise _several_configs(args, str(available))
    return default


def _several_configs(args: DataArguments, available: str) -> UserError:
    return UserError(f"--dataset_config_name: {args.dataset_name} has several configs; choose one of {available}")


def _no_config(args: DataArguments, available: str) -> UserError:
    wanted = args.dataset_config_name
    return UserError(f"--dataset_config_name: {args.dataset_name} has no config {wanted!r}; available: {available}")


def _row_sources(
    loaded: Mapping[str, Any],
    args: DataArguments,
    version: str = "",
    files: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Source]:
    found = {split: (rows, (files or {}).get(str(split), ())) for split, rows in loaded.items()}
    known, note = _known_splits(found, args)
    sources: dict[str, Source] = {
        split: dataclasses.replace(_row_source(split, rows, args, version), files=tuple(paths))
        for split, (rows, paths) in known.items()
    }
    return with_note(sources, note)


def _row_source(split: str, dataset: Dataset | IterableDataset, args: DataArguments, version: str = "") -> RowSource:
    where = f"the {split} split of {args.dataset_name}"
    features = dataset.features
    if features is None:  # a stream, of which the library knows them only when it reads
        first_rows = next(dataset.with_format("arrow").iter(1), pa.table({}))
        features = datasets.Features.from_arrow_schema(first_rows.schema)
    column = find_text_column(list(features), args, where)
    if isinstance(features[column], datasets.Json):  # what the library makes of values of several types
        raise not_text(column, "JSON values", f"in {where}")
    return RowSource(split, dataset, column, unit_of_rows(args, where), version, str(args.dataset_name))


def _not_found(name: str, error: OSError) -> UserError:
    if os.path.isdir(name):
        texts = list(filter(_is_text, visible_files(name)))
        if texts:  # the library takes some names of files for parts of other formats
            pattern = os.path.join(name, "**", f"*{os.path.splitext(texts[0])[1]}")
            return UserError(
                f"--dataset_name: the datasets library finds no split in the folder {name} ({first_line(error)}); "
                f"give a glob, such as --train_file {as_typed(pattern)}"
            )
        return UserError(
            f"--dataset_name: the folder {name} holds no data files; put txt, jsonl, csv or parquet files into it, or "
            f"give a glob, such as --train_file {as_typed(os.path.join(name, '**', '*.md'))}"
        )
    if isinstance(error, FileNotFoundError) and ensure_hub_or_offline():  # the hub answered
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return UserError(
                f"--dataset_name: the hub has no {name!r}, or not without a login ({first_line(error).rstrip('.')}); "
                "check the name, or ask for access and log in with: hf auth login"
            )
        return UserError(f"--dataset_name: {name} cannot be loaded: {first_line(error)}")
    return UserError(
        f"--dataset_name: {name!r} is not in the local cache and the hub cannot be reached; point --dataset_name at "
        "a local folder in the hub's layout, or --train_file at a file, or use --dataset_name python-docs"
    )
