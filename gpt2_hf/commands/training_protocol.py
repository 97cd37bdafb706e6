"""The text and the protocol that a model was trained with, where a command does not say another.

In: the data options of the command, and the `resolved_config.json` beside the model. Out: data options. Used by:
`evaluate`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoints.folders import RESOLVED_CONFIG_NAME, read_json
from ..errors import UserError
from ..options.arguments import DataArguments

# Options that act under certain values of others, and are refused otherwise. Those of the training run are passed over
# then: its protocol is repeated as far as it goes with what is asked for.
_ACTS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "truncate": lambda options: options["sequence_mode"] != "blocks",
    "pad_to_max_length": lambda options: options["sequence_mode"] == "padded",
    "join_documents": lambda options: options["sequence_mode"] == "blocks" and not options["streaming"],
    "shuffle_buffer_size": lambda options: options["streaming"],
}


def with_training_protocol(data_args: DataArguments, given: dict[str, str], source: str) -> DataArguments:
    """Take what the command does not say about the data from the config the model was trained with, where it acts."""
    if data_args.shift_blocks and "shift_blocks" in given:
        raise UserError("--shift_blocks has no effect: a text is scored as it is cut once; leave it out")
    fields = data_args.__dataclass_fields__
    values = {name: getattr(data_args, name) for name in fields}
    named_source = {"dataset_name", "train_file", "validation_file", "test_file", "train_mix"} & set(given)
    source_options = {
        "dataset_name",
        "dataset_config_name",
        "train_file",
        "validation_file",
        "test_file",
        "train_mix",
        "text_column",
    }
    limits = {"max_train_samples", "max_eval_samples"}  # shortcuts of a run, not part of how it measures
    left_out = limits | (source_options if named_source else set())
    trained = {name: value for name, value in inherited_options(source, given).items() if name in values}
    values |= {name: value for name, value in trained.items() if name not in left_out}
    values |= {name: fields[name].default for name, acts in _ACTS.items() if name in trained and not acts(values)}
    values["shift_blocks"] = False  # a text is scored as it is cut once
    was_inherited = values.pop("dataset_config_is_inherited")
    result = DataArguments(**values)
    result.dataset_config_is_inherited = (bool(named_source) and "dataset_config_name" not in given) or was_inherited
    return result


def inherited_options(source: str, given: dict[str, str]) -> dict[str, Any]:
    """The options of the run that trained a model, but for those that are given anew."""
    return {name: value for name, value in read_trained_config(source).items() if name not in given}


def read_trained_config(source: str) -> dict[str, Any]:
    """The resolved config beside a model that this package trained; empty for any other."""
    path = Path(source) / RESOLVED_CONFIG_NAME
    if not path.is_file():
        return {}
    return read_json(path)


def read_trained_option(source: str, name: str) -> Any:
    """One option of the run that trained a model, or `None`."""
    return read_trained_config(source).get(name)
