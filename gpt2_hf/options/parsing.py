"""From a JSON file and a command line to filled arguments: default < JSON < command line.

In every layer a value is read by the same `Reader`, so it is checked alike wherever it stands. Nothing is ignored:
an unknown name, a value of the wrong type, or an option that another one makes pointless is an error.
"""

import argparse
import difflib
import functools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import UserError, in_one_line
from ..runtime.command_lines import as_typed
from .arguments import (
    ACTS_IN_MODE,
    CHOSEN_BY_SIZE,
    COMMON,
    DECAYS_BY_TIME,
    WITHOUT_ARGUMENTS,
    WITHOUT_WARMUP,
    Preferred,
    names_of,
)
from .fields import Option, OptionGroup, Reader, group_of, spellings
from .json_text import read_json_file
from .mixture import DATA_FILES
from .synonyms import SYNONYMS
from .values import require_finite
from .without_effect import WITHOUT_EFFECT, WITHOUT_EFFECT_IN_A_JOB

HELP_ALL = ("--help-all", "--help_all")

# A written resolved_config.json is itself a config file; this key of it records circumstances, not options.
PROVENANCE_KEY = "provenance"

# Options that choose between two ways; naming the left one overrules the right ones of a lower layer, and beside
# the right ones in the same layer it is a contradiction.
OVERRULES = {
    "model_name_or_path": ("d_model", "num_layers", "num_heads", "d_ff", "tie_unused_tokens"),
    **dict.fromkeys(DATA_FILES, ("dataset_name", "dataset_config_name", "train_mix")),
    "train_mix": ("dataset_name", "dataset_config_name", *DATA_FILES),
    "global_batch_size": ("gradient_accumulation_steps",),
    "prompt_file": ("prompt",),
    "prompt": ("prompt_file",),
}
# The same, but in one layer both may stand.
_OVERRULES_FILE = {
    "dataset_name": (*DATA_FILES, "train_mix"),
    "size": CHOSEN_BY_SIZE,
    "streaming": ("shift_blocks", "join_documents", "max_train_samples"),
    "num_train_epochs": ("max_steps",),
    "precision": ("bf16", "fp16"),
    "bf16": ("precision", "fp16"),
    "fp16": ("precision", "bf16"),
}
# What --size auto always chooses.
_CHOSEN_WITH_SIZE = {"sequence_mode": "blocks"}

# Names that transformers has given up, and those that stand for the same now, where its release has them.
_OLDER_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}

# Options that only act under certain values of another one. A config file may state them all the same, because one
# that holds every default must; on the command line they are refused.
_ACTS_WITH = {
    "eval_steps": ("eval_strategy", ("steps",)),
    "save_steps": ("save_strategy", ("steps",)),
    "logging_steps": ("logging_strategy", ("steps",)),
    "eval_delay": ("eval_strategy", ("steps", "epoch")),
    "save_total_limit": ("save_strategy", ("steps", "epoch", "best")),
    "on_save_error": ("save_strategy", ("steps", "epoch", "best")),
    "metric_for_best_model": ("eval_strategy", ("steps", "epoch")),
    "muon_learning_rate": ("optim", ("muon",)),
    "muon_weight_decay": ("optim", ("muon",)),
    "muon_momentum": ("optim", ("muon",)),
    "outtype": ("format", ("gguf",)),
    "sample_tokens": ("eval_strategy", ("steps", "epoch")),
}
# The same for options that a file may not state then either; it loses them to the other one on the command line.
_NEEDS = {
    "early_stopping_patience": ("eval_strategy", ("steps", "epoch")),
    "schedule_by_time": ("lr_scheduler_type", DECAYS_BY_TIME),
    "shuffle_buffer_size": ("streaming", (True,)),
    "test_file": ("do_predict", (True,)),
    **{name: ("sequence_mode", modes) for name, modes in ACTS_IN_MODE.items()},
}
# The same the other way round: what such a choice on the command line takes away from the file.
_MAKES_POINTLESS = {
    ("document_unit", "paragraph"): ("join_documents",),
    ("metric_for_best_model", None): ("early_stopping_patience",),
}
# The same for options that only act beside another one, whatever its value.
_ACTS_BESIDE = {
    **dict.fromkeys(("distill_alpha", "distill_temperature"), "distill_from"),
    **dict.fromkeys(("hub_model_id", "hub_revision", "hub_private_repo"), "push_to_hub"),
    **dict.fromkeys(("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"), "activation_checkpointing"),
    "fsdp_config": "fsdp",
}
# Options of one tracker, which keeps its curves on the hub if it is told to.
_OF_TRACKIO = ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
# What no run heeds; the configs that earlier versions have left state it.
_POINTLESS = {"remove_unused_columns": "samples have no columns that the model does not take; leave it out"}
_NEVER_MEANT = {*WITHOUT_EFFECT, *WITHOUT_EFFECT_IN_A_JOB, *_POINTLESS}
# Optimizers of transformers that have none of AdamW's settings.
_WITHOUT_MOMENTS = ("adafactor", "sgd", "adagrad", "rmsprop")


@dataclass(frozen=True)
class Parsed:
    """Filled arguments, and which layer each value came from.

    Attributes:
        values: one instance per dataclass, in the order asked for.
        given: option name to `"config"` or `"command line"`; defaults are absent.
    """

    values: tuple[Any, ...]
    given: dict[str, str]


class Parser(argparse.ArgumentParser):
    """An argparse parser of the options of arguments classes, with errors of one line.

    Args:
        sources: arguments classes, or what is known of their options from their source.
        refused: options that the command refuses later; they are neither in the help nor suggested.
    """

    def __init__(self, sources: Sequence[type | OptionGroup], refused: Collection[str] = (), **kwargs: Any):
        usage = "%(prog)s [--config FILE.json] [--option value ...]"
        super().__init__(
            usage=usage, allow_abbrev=False, exit_on_error=False, formatter_class=_HelpFormatter, **kwargs
        )
        self.optional: set[str] = set()
        self._refused = refused
        self._seldom: list[argparse.Action] = []
        groups = [source if isinstance(source, OptionGroup) else group_of(source) for source in sources]
        are_many = any(group.base for group in groups)
        for group in groups:
            self._add_options(group, all_common=not are_many)
        if self._seldom and self.add_help:
            self.add_argument(*HELP_ALL, action="store_true", help="show all options and exit")

    def _add_options(self, options: OptionGroup, all_common: bool) -> None:
        """Options of a class, and after them those that it merely inherits, transformers' many."""
        group = self.add_argument_group(options.title)
        further = self.add_argument_group(f"{options.title}, of {options.base}") if options.base else group
        for option in options.options:
            action = self._add_option(group if option.is_own else further, option)
            if action is not None and not all_common and option.name not in COMMON:
                self._seldom.append(action)

    def _add_option(self, group: argparse._ArgumentGroup, option: Option) -> argparse.Action | None:
        reader = option.reader
        if not reader.is_readable:
            return None  # an object that only Python code can give
        kwargs: dict[str, Any] = {}
        if reader.takes_list:
            kwargs = {"nargs": "+", "action": _Once}
        elif reader.takes_bool:
            kwargs = {"nargs": "?", "const": True}
        if reader.optional:
            self.optional.add(option.name)
        action = group.add_argument(
            *option.spellings,
            dest=option.name,
            type=reader,
            default=option.default,
            help=argparse.SUPPRESS if option.name in self._refused else option.help,
            **kwargs,
        )
        if reader.takes_bool and option.default is True:
            opposites = spellings(f"no_{option.name}")
            group.add_argument(
                *opposites, dest=option.name, action="store_false", default=True, help=argparse.SUPPRESS
            )
        return action

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_layer(self, tokens: Sequence[str]) -> dict[str, Any]:
        """Parse tokens and return only the options that were given."""
        if {"-h", "--help", *HELP_ALL} & set(tokens):
            self._show_help(everything=bool({*HELP_ALL} & set(tokens)))  # here, where the defaults are still known
        defaults = {action: action.default for action in self._actions}
        try:
            for action in self._actions:
                action.default = argparse.SUPPRESS
            namespace, unknown = self.parse_known_args(list(tokens))
        except argparse.ArgumentError as error:
            names = (error.argument_name or "").split("/")
            used = [name for name in names if any(token.split("=")[0] == name for token in tokens)]
            self.error(f"{(used or names)[0]}: {error.message}")
        finally:
            for action, default in defaults.items():
                action.default = default
        if unknown:
            self._unknown(unknown[0], tokens)
        for name, value in vars(namespace).items():
            if value == []:  # argparse takes `--` out of the values
                self.error(f"--{name}: -- is not taken as a value here; give it in a config file")
        layer = {name: self._without_list(name, value) for name, value in vars(namespace).items()}
        require_finite(layer)
        return layer

    def _without_list(self, name: str, value: Any) -> Any:
        """`none`, or the one value of an option that may have several but need not."""
        reader = next(action.type for action in self._actions if action.dest == name)
        if not isinstance(value, list) or not isinstance(reader, Reader):
            return value
        return value[0] if len(value) == 1 and reader.takes_one else _joined(name, value, reader)

    def _show_help(self, everything: bool) -> NoReturn:
        if not everything and self._seldom:
            for action in self._seldom:
                action.help = argparse.SUPPRESS
            further = f"{HELP_ALL[0]} shows {len(self._seldom)} further options."
            self.epilog = f"{further} {self.epilog or ''}".rstrip()
        self.print_help()
        self.exit()

    def _unknown(self, token: str, tokens: Sequence[str]) -> NoReturn:
        if not token.startswith("-"):
            last = len(tokens) - 1 - list(reversed(tokens)).index(token)
            option = next((before.split("=")[0] for before in reversed(tokens[:last]) if before.startswith("-")), "")
            if option.lstrip("-").replace("-", "_") in DATA_FILES:
                pattern = f"{option} 'data/*.txt'"
                self.error(f"{option} takes one value, but {token!r} follows; quote a pattern: {pattern}")
            self.error(f"unexpected argument {token!r}; options begin with --")
        self.error(f"unknown option {token.split('=')[0]}{self.suggestion(token)}")

    def suggestion_for_key(self, key: str) -> str:
        """What to do instead of a key of a config file that is none."""
        if key.replace("-", "_") == "config":
            return "; a config file cannot name another"
        opposite = self._option_string_actions.get(f"--{key}")
        if opposite is not None and opposite.const is False:
            return f'; say "{opposite.dest}": false'
        return self.suggestion(key, [name for name in self._names if self.action_of(name) is not None])

    @property
    def _names(self) -> list[str]:
        return [option.lstrip("-") for option in self._option_string_actions]

    def suggestion(self, token: str, names: Sequence[str] | None = None) -> str:
        """`; did you mean …?` for what it is called here or the nearest option, or a pointer to the help.

        Args:
            token: what was typed.
            names: that it may stand for; those of all options when left out.
        """
        name = token.split("=")[0].lstrip("-").replace("-", "_")
        known = ["config", *self._names] if names is None else names
        known = [other for other in known if other.replace("-", "_") not in self._refused]
        meant = [synonym for synonym in SYNONYMS.get(name.lower(), ()) if synonym in known]
        acting = [other for other in known if other.replace("-", "_") not in _NEVER_MEANT]
        nearest = meant or difflib.get_close_matches(name, acting, n=1, cutoff=0.5)
        return f"; did you mean {' or '.join(nearest)}?" if nearest else f"; {self._help_option} lists the options"

    @property
    def _help_option(self) -> str:
        return HELP_ALL[0] if self._seldom else "--help"

    def in_words_of(self, typed: Sequence[str], message: str) -> str:
        """A message with the names of options as they were typed, where it has others of the same options."""
        for action in self._actions:
            name = f"--{action.dest}"
            used = [spelling for spelling in action.option_strings if spelling in typed]
            if used and name not in used:
                message = re.sub(rf"{name}(?![\w-])", used[0], message)
        return message

    def action_of(self, key: str) -> argparse.Action | None:
        """The action behind a key of a config file: an option's name or one of its aliases."""
        action = self._option_string_actions.get(f"--{key}")
        return action if action is not None and isinstance(action.type, Reader) else None


class _Once(argparse.Action):
    """Stores several values, and refuses to be given again, where the earlier values would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if hasattr(namespace, self.dest):
            both = as_typed(str(option_string), *map(str, [*getattr(namespace, self.dest), *values]))
            raise UserError(f"{option_string} is given twice; put all values after one: {both}")
        setattr(namespace, self.dest, values)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """One spelling of each name, and what kind of value it takes, once."""

    _MOST_CHOICES = 12

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name.lstrip("-")]
        if action.dest == "help_all":
            names = [HELP_ALL[0]]
        return " ".join([", ".join(names), self._kind(action)]).rstrip()

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.nargs == 0 or action.default is None else super()._get_help_string(action)

    def _kind(self, action: argparse.Action) -> str:
        if action.nargs == 0 or not isinstance(action.type, Reader):
            return ""
        if action.nargs == "?":
            return "[true|false]"
        choices = action.type.choices
        if choices and len(choices) <= self._MOST_CHOICES:
            return "{" + ",".join(choices) + "}"
        kind = {"int": "N", "float": "X"}.get(action.type.__name__, "TEXT")
        return f"{kind} ..." if action.nargs == "+" else kind


class ConfigFile:
    """A flat JSON file of options; it is read once, because it may be a pipe."""

    def __init__(self, path: str):
        self.path = path

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """What the file says.

        Raises:
            UserError: if it cannot be read or is no JSON object.
        """
        content = read_json_file(self.path, "--config", "give the path of a JSON file")
        if not isinstance(content, dict):
            raise UserError(f"--config: {self.path} must hold one JSON object of options")
        content.pop(PROVENANCE_KEY, None)
        return content


def parse(
    dataclass_types: Sequence[type | OptionGroup],
    argv: Sequence[str],
    config: str | ConfigFile | None = None,
    **parser_options: Any,
) -> Parsed:
    """Fill the dataclasses from their defaults, a JSON file, and the command line.

    Args:
        dataclass_types: the classes; one of which only the options are known is checked, and its value is `None`.
        argv: the command line.
        config: the JSON file.
        parser_options: of `Parser`.

    Raises:
        UserError: one line, naming the option and the remedy.
    """
    parser = Parser(dataclass_types, **parser_options)
    command_line = parser.parse_layer(argv)
    file = ConfigFile(config) if isinstance(config, str) else config
    typed = [token.split("=")[0] for token in argv] + [f"--{key}" for key in (file.content if file else ())]
    try:
        return _filled(parser, dataclass_types, command_line, file)
    except UserError as error:
        raise UserError(parser.in_words_of(typed, str(error))) from error


def _filled(
    parser: Parser,
    dataclass_types: Sequence[type | OptionGroup],
    command_line: dict[str, Any],
    file: ConfigFile | None,
) -> Parsed:
    """Join the layers, check what they make of each other, and fill the classes."""
    stated = read_config(parser, file) if file else {}
    for layer in (stated, command_line):
        _take_newer_names(parser, layer)
    stated = _without_overruled(stated, command_line)
    for layer in (stated, command_line):
        _check_contradictions(layer)
    config_name = stated.get("dataset_config_name")
    if config_name is not None and "dataset_name" in command_line:  # it may be that of another dataset
        stated["dataset_config_name"] = Preferred(config_name)
    merged = {**stated, **command_line}
    _check_pointless(merged, command_line)
    given = {name: "command line" if name in command_line else "config" for name in merged}
    chosen = _CHOSEN_WITH_SIZE if merged.get("size") else {}  # where it is not stated
    values = tuple(
        None if isinstance(source, OptionGroup) else _build(source, chosen | merged) for source in dataclass_types
    )
    unsettled = [name for name in CHOSEN_BY_SIZE if name not in merged] if merged.get("size") else []
    for value in values:
        check_acting(value, command_line, unsettled)
        _check_precision(value, command_line)
    return Parsed(values, given)


def read_config(parser: Parser, config: ConfigFile) -> dict[str, Any]:
    """Check the options of a file and read their values."""
    path = config.path
    layer: dict[str, Any] = {}
    for key, value in config.content.items():
        action = parser.action_of(key)
        if action is None:
            raise UserError(f"--config: {path}: unknown key {key!r}{parser.suggestion_for_key(key)}")
        if action.dest in layer:
            raise UserError(f"--config: {path}: {key!r} and another key both set {action.dest}; keep one of them")
        if value is None and action.dest not in parser.optional:
            raise UserError(f"--config: {path}: {key} cannot be null; leave it out for its default")
        try:
            # argparse takes any function for a type; those of options are Readers
            layer[action.dest] = _from_json(key, value, action.type)  # type: ignore[arg-type]
            require_finite({key: layer[action.dest]})
        except UserError as error:
            raise UserError(f"--config: {path}: {error}") from error
    return layer


def _from_json(key: str, value: Any, reader: Reader) -> Any:
    """A JSON value as the same text on the command line would be read; objects as they are."""
    if value is None:
        return None
    if isinstance(value, list):
        if not reader.takes_list:
            raise UserError(f"--{key}: a list is not expected")
        wrong = [item for item in value if item is None or isinstance(item, bool | list | dict)]
        if wrong:
            raise UserError(f"--{key}: {json.dumps(wrong[0])} is not expected in a list")
        return _joined(key, [_from_text(key, str(item), reader) for item in value], reader)
    if isinstance(value, dict):
        if not reader.takes_object:
            raise UserError(f"--{key}: an object is not expected")
        return value
    if isinstance(value, bool):
        if not reader.reads_bool:
            raise UserError(f"--{key}: true and false are not expected")
        return value
    item = _from_text(key, str(value), reader)
    return _joined(key, [item], reader) if reader.takes_list and not reader.takes_one else item


def _joined(key: str, values: list[Any], reader: Reader) -> list[Any] | None:
    try:
        return reader.joined(values)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--{key}: {error}") from error


def _from_text(key: str, text: str, reader: Reader) -> Any:
    try:
        return reader(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--{key}: {error}") from error
    except ValueError as error:  # argparse's own words
        raise UserError(f"--{key}: invalid {reader.__name__} value: {text!r}") from error


def _take_newer_names(parser: Parser, layer: dict[str, Any]) -> None:
    """Call an option by one name, so that a later layer overrules it under either."""
    for older, newer in _OLDER_NAMES.items():
        if older in layer and parser.action_of(newer) is not None:
            value = layer.pop(older)
            if value is not None and layer.setdefault(newer, value) != value:
                raise UserError(f"--{older} is an older name of --{newer}, which has another value; leave it out")


def _without_overruled(config: dict[str, Any], command_line: dict[str, Any]) -> dict[str, Any]:
    """Drop what the command line's choice of another way makes pointless in the file."""
    if command_line.get("size"):
        command_line = _CHOSEN_WITH_SIZE | command_line
    dropped: set[str] = set()
    for choice, others in (*OVERRULES.items(), *_OVERRULES_FILE.items()):
        if command_line.get(choice) not in (None, False):
            dropped |= set(others)
    for name, (other, acting) in _NEEDS.items():
        if other in command_line and command_line[other] not in acting:
            dropped.add(name)
    for (choice, value), others in _MAKES_POINTLESS.items():
        if choice in command_line and command_line[choice] == value:
            dropped |= set(others)
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
                raise UserError(f"--{other} has no effect beside the config's {choice}; leave one of them out")


def check_acting(value: Any, command_line: Collection[str], unsettled: Collection[str] = ()) -> None:
    """Refuse an option of the command line that does nothing under the value that another option has.

    Args:
        value: filled arguments.
        command_line: the names of the options on it.
        unsettled: options whose value is chosen later.
    """
    for name, (other, acting) in _ACTS_WITH.items():
        if other in unsettled:
            continue
        if name in command_line and hasattr(value, other) and _setting(value, other) not in acting:
            raise UserError(f"--{name} has no effect with --{other} {_setting(value, other)}; leave it out")
    uses_trackio = "trackio" in getattr(value, "report_to", [])
    for name, other in _ACTS_BESIDE.items():
        acts = getattr(value, other, True) or (name == "hub_private_repo" and uses_trackio)
        if name in command_line and not acts:
            raise UserError(f"--{name} has no effect without --{other}; leave it out")
    for name in _OF_TRACKIO:
        if name in command_line and hasattr(value, name) and not uses_trackio:
            remedy = "for W&B set the environment variable WANDB_PROJECT" if name == "project" else "leave it out"
            raise UserError(f"--{name} has no effect without --report_to trackio; {remedy}")
    for name, remedy in _POINTLESS.items():
        if name in command_line and hasattr(value, name):
            raise UserError(f"--{name} has no effect: {remedy}")
    optim = _setting(value, "optim")
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        if name in command_line and optim in _WITHOUT_MOMENTS:
            raise UserError(f"--{name} has no effect with --optim {optim}; leave it out")
    schedule = _setting(value, "lr_scheduler_type")
    if "warmup_steps" in command_line and schedule in WITHOUT_WARMUP:
        remedy = "constant_with_warmup has one" if schedule == "constant" else "leave it out"
        raise UserError(f"--warmup_steps has no effect with --lr_scheduler_type {schedule}; {remedy}")
    if "lr_scheduler_kwargs" in command_line and _setting(value, "lr_scheduler_kwargs"):
        if schedule in WITHOUT_ARGUMENTS:
            raise UserError(f"--lr_scheduler_kwargs has no effect with --lr_scheduler_type {schedule}; leave it out")
        if _setting(value, "schedule_by_time"):
            raise UserError("--lr_scheduler_kwargs has no effect with --schedule_by_time; leave one of them out")


def _check_precision(value: Any, command_line: dict[str, Any]) -> None:
    """Refuse that the command line denies what is taken all the same; a file that states every default denies both."""
    for name in ("bf16", "fp16"):
        if command_line.get(name) is False and getattr(value, name, False):
            why = f"--precision {value.precision}, which takes {name} here"
            raise UserError(f"--{name} false contradicts {why}; use --precision fp32")


def _setting(value: Any, name: str) -> Any:
    """An option's value, of an enumeration the text that stands for it; `None` without such an option."""
    setting = getattr(value, name, None)
    return getattr(setting, "value", setting)


def _build(dataclass_type: type, merged: dict[str, Any]) -> Any:
    values = {name: merged[name] for name in names_of(dataclass_type) if name in merged}
    try:
        made = dataclass_type(**values)
        if hasattr(made, "check_for_job"):
            made.check_for_job()
        return made
    except UserError:
        raise
    except (ValueError, RuntimeError, ImportError, TypeError) as error:
        # transformers' own checks; their messages name the option but may run over several lines
        raise UserError(in_one_line(error)) from error
