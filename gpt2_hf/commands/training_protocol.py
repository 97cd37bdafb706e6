"""The text and the protocol that a model was trained with, where a command does not say another.

In: the data options of the command, and the `resolved_config.json` beside the model, in a folder or on the hub. Out:
data options.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils import cached_file

from ..checkpoints.folders import RESOLVED_CONFIG_NAME
from ..data.readers import text_file
from ..errors import UserError, first_line
from ..options.arguments import ACTS_IN_MODE, DataArguments
from ..options.fields import default_value
from ..options.mixture import DATA_FILES, SOURCES, TEXT_KEYS
from ..options.parsing import PROVENANCE_KEY
from ..runtime.distributed import process_index
from ..runtime.files import read_json
from ..runtime.hub import CONNECTION_ERRORS, ensure_hub_or_offline, is_hub_id, is_local_path


def with_training_protocol(data_args: DataArguments, given: dict[str, str], source: str) -> DataArguments:
    """Take what the command does not say about the data from the training's config, where it takes effect."""
    if data_args.shift_blocks and "shift_blocks" in given:
        raise UserError("--shift_blocks has no effect: a text is scored as it is cut once; leave it out")
    if _is_unknown(source) and process_index() == 0:
        print(f"{source} is scored by the defaults: how it was trained is not in the cache, and there is no network")
    values = {field.name: getattr(data_args, field.name) for field in fields(data_args)}
    record = read_trained_config(source)
    named_source = set(SOURCES) & set(given)
    if named_source == {"dataset_name"} and record.get("dataset_name") == data_args.dataset_name:
        named_source = set()  # the dataset of the training, with all that was said of it
    if "dataset_config_name" in given:
        _check_has_configs(record, named_source)
        if record.get("dataset_config_name") != data_args.dataset_config_name:
            named_source.add("dataset_config_name")  # another text of it
    trained = {name: value for name, value in record.items() if name in values and name not in given}
    left_out = {"max_train_samples", "max_eval_samples"}  # shortcuts of a run, not part of how it measures
    if not named_source:
        _check_held_out(data_args, given, record)
    else:
        left_out |= {*SOURCES, *TEXT_KEYS}
        if named_source == {"dataset_config_name"}:
            left_out.remove("dataset_name")
        if _is_unit_of(trained.get("document_unit"), [getattr(data_args, name) for name in named_source]):
            left_out.remove("document_unit")
    values |= {name: value for name, value in trained.items() if name not in left_out}
    if not any(values[name] for name in SOURCES):
        raise UserError(
            f"{source} was trained on a text that its author has; give one to score it on, such as --test_file"
        )
    # The protocol of the training is repeated as far as it goes with what is asked for.
    acts = {name: values["sequence_mode"] in modes for name, modes in ACTS_IN_MODE.items()}
    acts["join_documents"] &= not values["streaming"] and values["document_unit"] != "paragraph"
    acts["shuffle_buffer_size"] = values["streaming"]
    idle = [name for name in acts if name in trained and not acts[name]]
    values |= {name: default_value(DataArguments, name) for name in idle}
    values["shift_blocks"] = False  # a text is scored as it is cut once
    return DataArguments(**values)


def _check_has_configs(record: dict[str, Any], named_source: set[str]) -> None:
    if not named_source and any(record.get(name) for name in (*DATA_FILES, "train_mix")):
        raise UserError(
            "--dataset_config_name has no effect: the model was trained on files; add --dataset_name, or leave it out"
        )


def _check_held_out(data_args: DataArguments, given: dict[str, str], record: dict[str, Any]) -> None:
    """Refuse another share than was set aside of the text of the training."""
    name = "validation_split_percentage"
    percentage = getattr(data_args, name)
    if name in given and record.get(name, percentage) != percentage:
        raise UserError(
            f"--{name} {percentage:g} would score what the model was trained on, which set aside {record[name]:g} %; "
            "leave it out, or name another text"
        )


def _is_unit_of(unit: str | None, named: list[Any]) -> bool:
    """Whether what was a document of the training text can be one of another text.

    Every text has lines and paragraphs. Only files of plain text can be a document each. `row` says nothing of another
    text: it is the default of one with rows, and plain text has none.
    """
    return unit in ("line", "paragraph") or (unit == "file" and all(map(_is_plain_text, named)))


def _is_plain_text(name: Any) -> bool:
    """Whether a source is named as files of plain text, which may be one document each."""
    try:
        return not text_file(str(name), "").has_columns
    except UserError:  # a dataset, a mix, or files of no one ending
        return False


def inherited_options(source: str, given: dict[str, str]) -> dict[str, Any]:
    """The options of the run that trained a model, but for those that are given anew."""
    return {name: value for name, value in read_trained_config(source).items() if name not in given}


def read_trained_config(source: str) -> dict[str, Any]:
    """The resolved config beside a model that this package trained; empty for any other.

    That of a model of the hub names no files: they are its author's.
    """
    if not is_hub_id(source):
        path = Path(source) / RESOLVED_CONFIG_NAME
        return read_json(path) if path.is_file() else {}
    try:
        found = cached_file(source, RESOLVED_CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    except CONNECTION_ERRORS as error:
        raise UserError(f"{source}: {RESOLVED_CONFIG_NAME} cannot be loaded: {first_line(error)}") from error
    config = read_json(Path(found)) if found is not None else {}
    files = [config.pop(name, None) for name in (*DATA_FILES, "train_mix")]
    was_folder = "dataset_name" in config.get(PROVENANCE_KEY, {}).get("folders", ())
    if any(files) or was_folder or is_local_path(config.get("dataset_name") or ""):
        config["dataset_name"] = None  # rather than the default
    return config


def _is_unknown(source: str) -> bool:
    """Whether a model of the hub may have a record that nobody has looked for: without a network only the cache is."""
    if not is_hub_id(source) or ensure_hub_or_offline():
        return False
    return try_to_load_from_cache(source, RESOLVED_CONFIG_NAME) is None


def read_trained_option(source: str, name: str) -> Any:
    """One option of the run that trained a model, or `None`."""
    return read_trained_config(source).get(name)
