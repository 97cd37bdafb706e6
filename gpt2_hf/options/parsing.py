"""From a JSON file and a command line to filled arguments: default < JSON < command line.

Every layer is parsed by the same argparse parser, so a value is checked alike wherever it stands. Nothing is
ignored: an unknown name, a value of the wrong type, or an option that another one makes pointless is an error.
"""

import argparse
import dataclasses
import difflib
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from ..errors import UserError

# A written resolved_config.json is itself a config file; this key of it records circumstances, not options.
PROVENANCE_KEY = "provenance"

_DATA_FILES = ("train_file", "validation_file", "test_file")

# Options that choose between two ways; naming the left one overrules the right ones of a lower layer, and beside
# the right ones in the same layer it is a contradiction.
OVERRULES = {
    "model_name_or_path": ("d_model", "num_layers", "num_heads", "d_ff", "tie_unused_tokens"),
    **dict.fromkeys(_DATA_FILES, ("dataset_name", "dataset_config_name")),
    "global_batch_size": ("gradient_accumulation_steps",),
}

# Options that only act under certain values of another one. A config file may state them all the same, because one
# that holds every default must; on the command line they are refused.
_ACTS_WITH = {
    "eval_steps": ("eval_strategy", ("steps",)),
    "save_steps": ("save_strategy", ("steps",)),
    "logging_steps": ("logging_strategy", ("steps",)),
    "on_save_error": ("save_strategy", ("steps", "epoch", "best")),
    "metric_for_best_model": ("eval_strategy", ("steps", "epoch")),
    "muon_learning_rate": ("optim", ("muon",)),
    "muon_momentum": ("optim", ("muon",)),
    "outtype": ("format", ("gguf",)),
}


@dataclass(frozen=True)
class Parsed:
    """Filled arguments, and which layer each value came from.

    Attributes:
        values: one instance per dataclass, in the order asked for.
        given: option name to `"config"` or `"command line"`; defaults are absent.
    """

    values: tuple[Any, ...]
    given: dict[str, str]


class Parser(HfArgumentParser):
    """transformers' dataclass parser that raises one-line errors and takes `none` for optional values."""

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        kwargs = {"usage": "%(prog)s [--config FILE.json] [--option value ...]", **kwargs}
        super().__init__(
            dataclass_types, allow_abbrev=False, exit_on_error=False, formatter_class=_HelpFormatter, **kwargs
        )
        self._group_inherited(dataclass_types)
        self.optional = _optional_names(dataclass_types)
        for action in self._actions:
            if action.dest in self.optional and action.type is not None:
                action.type = _or_none(action.type)

    def _group_inherited(self, dataclass_types: Sequence[type]) -> None:
        """Show what a class merely inherits, transformers' many options, after its own."""
        for group, dataclass_type in zip(list(self._action_groups[2:]), dataclass_types, strict=True):
            own = set(dataclass_type.__annotations__)
            inherited = [action for action in group._group_actions if action.dest not in own]
            if inherited:
                group._group_actions = [action for action in group._group_actions if action.dest in own]
                further = self.add_argument_group(f"{group.title}, of {dataclass_type.__mro__[1].__name__}")
                further._group_actions = inherited

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_layer(self, tokens: Sequence[str]) -> dict[str, Any]:
        """Parse tokens and return only the options that were given."""
        if {"-h", "--help"} & set(tokens):
            self.print_help()  # here, where the defaults are still known
            self.exit()
        defaults = {action: action.default for action in self._actions}
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
            namespace, unknown = self.parse_known_args(list(tokens))
        except argparse.ArgumentError as error:
            spellings = (error.argument_name or "").split("/")
            used = [name for name in spellings if any(token.split("=")[0] == name for token in tokens)]
            self.error(f"{(used or spellings)[0]}: {error.message}")
        finally:
            for action, default in defaults.items():
                action.default = default
        if unknown:
            self._unknown(unknown[0])
        return vars(namespace)

    def _unknown(self, token: str) -> NoReturn:
        if not token.startswith("-"):
            self.error(f"unexpected argument {token!r}; options begin with --")
        self.error(f"unknown option {token.split('=')[0]}{self.suggestion(token)}")

    def suggestion(self, token: str) -> str:
        """`; did you mean …?` for the nearest option, or a pointer to the help."""
        name = token.split("=")[0].lstrip("-").replace("-", "_")
        known = [option.lstrip("-") for option in self._option_string_actions]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        return f"; did you mean {nearest[0]}?" if nearest else "; --help lists the options"

    def action_of(self, key: str) -> argparse.Action | None:
        """The action behind an option name or one of its aliases."""
        return self._option_string_actions.get(f"--{key}")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each name, and what kind of value it takes, once."""

    _MOST_CHOICES = 12

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        return " ".join([", ".join(names), self._kind(action)]).rstrip()

    def _kind(self, action: argparse.Action) -> str:
        if action.nargs == 0:
            return ""
        if action.nargs == "?":
            return "[true|false]"
        if action.choices is not None and len(list(action.choices)) <= self._MOST_CHOICES:
            return "{" + ",".join(map(str, action.choices)) + "}"
        kind = {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "TEXT")
        return f"{kind} ..." if action.nargs == "+" else kind


def parse(
    dataclass_types: Sequence[type], argv: Sequence[str], config_path: str | None = None, **parser_options: Any
) -> Parsed:
    """Fill the dataclasses from their defaults, a JSON file, and the command line.

    Raises:
        UserError: one line, naming the option and the remedy.
    """
    parser = Parser(dataclass_types, **parser_options)
    command_line = parser.parse_layer(argv)
    config = read_config(parser, config_path) if config_path else {}
    config = _without_overruled(config, command_line)
    for layer in (config, command_line):
        _check_contradictions(layer)
    merged = {**config, **command_line}
    _check_pointless(merged, command_line)
    given = {name: "command line" if name in command_line else "config" for name in merged}
    values = tuple(
        _build(dataclass_type, {name: merged[name] for name in _field_names(dataclass_type) if name in merged})
        for dataclass_type in dataclass_types
    )
    for value in values:
        _check_acting(value, command_line)
        if hasattr(value, "dataset_config_is_inherited"):
            rank = {None: 0, "config": 1, "command line": 2}
            value.dataset_config_is_inherited = (
                rank[given.get("dataset_config_name")] < rank[given.get("dataset_name")]
            )
    return Parsed(values, given)


def read_config(parser: Parser, path: str) -> dict[str, Any]:
    """Read and check a flat JSON file of options."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--config: {path} cannot be read ({reason}); give the path of a JSON file") from error
    try:
        content = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        raise UserError(f"--config: {path} is not JSON: {error.msg} in line {error.lineno}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config: {path} must hold one JSON object of options")
    content.pop(PROVENANCE_KEY, None)
    layer: dict[str, Any] = {}
    for key, value in content.items():
        action = parser.action_of(key)
        if action is None or action.dest == "help" or (action.dest != key and key not in _names(action)):
            raise UserError(f"--config: {path}: unknown key {key!r}{parser.suggestion(key)}")
        if action.dest in layer:
            raise UserError(f"--config: {path}: {key!r} and another key both set {action.dest}; keep one of them")
        try:
            layer.update(parser.parse_layer(_tokens(action, key, value)) if value is not None else {})
        except UserError as error:
            raise UserError(f"--config: {path}: {error}") from error
        if value is None:
            if action.dest not in parser.optional:
                raise UserError(f"--config: {path}: {key} cannot be null; leave it out for its default")
            layer[action.dest] = None
        elif value == [] and action.nargs == "+":  # as `report_to` is written down where nothing is reported to
            layer[action.dest] = []
    return layer


def _names(action: argparse.Action) -> list[str]:
    return [option.lstrip("-") for option in action.option_strings]


def _tokens(action: argparse.Action, key: str, value: Any) -> list[str]:
    """A JSON value as command-line tokens."""
    if isinstance(value, list):
        if action.nargs != "+":
            raise UserError(f"--{key}: a list is not expected")
        return [f"--{key}", *map(str, value)] if value else []
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    if isinstance(value, bool):
        if action.nargs != "?":
            raise UserError(f"--{key}: true and false are not expected")
        return [f"--{key}={str(value).lower()}"]
    return [f"--{key}={value}"] if action.nargs != "+" else [f"--{key}", str(value)]


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise UserError(f"--config: the key {key!r} stands twice; keep one")
        content[key] = value
    return content


def _without_overruled(config: dict[str, Any], command_line: dict[str, Any]) -> dict[str, Any]:
    """Drop what the command line's choice of another way makes pointless in the file."""
    dropped = {name for choice, others in OVERRULES.items() if command_line.get(choice) is not None for name in others}
    if any(command_line.get(name) is not None for name in ("dataset_name",)):
        dropped |= set(_DATA_FILES)
    return {name: value for name, value in config.items() if name not in dropped}


def _check_contradictions(layer: dict[str, Any]) -> None:
    for choice, others in OVERRULES.items():
        if layer.get(choice) is None:
            continue
        for other in others:
            if layer.get(other) is not None:
                raise UserError(f"--{other} has no effect beside --{choice}; leave one of them out")


def _check_pointless(merged: dict[str, Any], command_line: dict[str, Any]) -> None:
    """Refuse an option of the command line that a choice of the file makes pointless."""
    for choice, others in OVERRULES.items():
        for other in others:
            if merged.get(choice) is not None and choice not in command_line and command_line.get(other) is not None:
                if choice in _DATA_FILES:
                    continue  # another data set on the command line takes the files' place
                raise UserError(f"--{other} has no effect beside the config's {choice}; leave one of them out")


def _check_acting(value: Any, command_line: dict[str, Any]) -> None:
    """Refuse an option of the command line that does nothing under the value that another option has."""
    for name, (other, acting) in _ACTS_WITH.items():
        if name in command_line and hasattr(value, other) and getattr(value, other) not in acting:
            setting = getattr(value, other)
            raise UserError(
                f"--{name} has no effect with --{other} {getattr(setting, 'value', setting)}; leave it out"
            )
    if "warmup_steps" in command_line and getattr(value, "lr_scheduler_type", None) in ("constant", "greedy"):
        raise UserError("--warmup_steps has no effect with --lr_scheduler_type constant; constant_with_warmup has one")


def _build(dataclass_type: type, values: dict[str, Any]) -> Any:
    try:
        return dataclass_type(**values)
    except UserError:
        raise
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        # transformers' own checks; their messages name the option but may run over several lines
        raise UserError(" ".join(str(error).split())) from error


def _field_names(dataclass_type: type) -> list[str]:
    return [field.name for field in dataclasses.fields(dataclass_type) if field.init]


def _optional_names(dataclass_types: Sequence[type]) -> set[str]:
    names = set()
    for dataclass_type in dataclass_types:
        for name, hint in get_type_hints(dataclass_type).items():
            if get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint):
                names.add(name)
    return names


def _or_none(convert: Any) -> Any:
    def convert_or_none(text: str) -> Any:
        return None if text.lower() in ("none", "null") else convert(text)

    # argparse names the converter in "invalid int value: 'x'"
    convert_or_none.__name__ = getattr(convert, "__name__", "value")
    return convert_or_none
