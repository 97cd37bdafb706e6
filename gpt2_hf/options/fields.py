"""An option as a field of an arguments class states it: its name, the text it takes, its default and its help.

In: a dataclass. Out: what `parsing` tells argparse. transformers' HfArgumentParser does the same, but importing it
takes half a second, it cannot read each value that a field can have (true for `bool | None`, a list for
`str | list[str]`), and it shows the help of an option again with its opposite.
"""

import dataclasses
import enum
import types
import typing
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from .json_text import read_json

_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")

# What can stand in a hint and be read from text; `None` is read too, but does not make an option by itself.
_SCALARS = (bool, int, float, str)
# Of an object that cannot be read, an error repeats this number of characters.
_SHOWN_CHARACTERS = 200


def spellings(name: str) -> list[str]:
    """What may be typed for a name: with underscores or hyphens."""
    return list(dict.fromkeys([f"--{name}", f"--{name.replace('_', '-')}"]))


@dataclass(frozen=True)
class Option:
    """A field of an arguments class.

    Attributes:
        hint: the type hint; `object` in it stands for a type that is not known (see `source`).
        default: what `--help` shows.
        aliases: further spellings, with their dashes.
        is_own: the class states it itself and does not merely inherit it.
        choices: the only values, where the field has a list of them beside its hint.
    """

    name: str
    hint: Any
    default: Any
    help: str | None
    aliases: tuple[str, ...] = ()
    is_own: bool = True
    choices: tuple[str, ...] = ()

    @property
    def reader(self) -> "Reader":
        """What reads a value of it."""
        return Reader(self.hint, self.choices)

    @property
    def spellings(self) -> list[str]:
        """Everything that may be typed for it."""
        return list(dict.fromkeys([*spellings(self.name), *self.aliases]))


@dataclass(frozen=True)
class OptionGroup:
    """The options of an arguments class.

    Attributes:
        base: the class that the others are inherited from.
    """

    title: str
    options: tuple[Option, ...]
    base: str | None = None


class Reader:
    """Turns a text into a value of one of the types in a hint; argparse calls it.

    Attributes:
        optional: the hint has `None`, for which `none` is typed.
        takes_bool: the option alone means true.
        reads_bool: `true` and `false` are values.
        takes_object: a JSON object is a value.
        takes_list: several values may follow.
        takes_one: of an option that may take several, a single one is no list.
        choices: the only values, if they are limited.
    """

    def __init__(self, hint: Any, choices: Sequence[str] = ()):
        members = list(_members(hint))
        self.optional = type(None) in members
        lists = [member for member in members if _origin(member) is list]
        self.takes_list = bool(lists)
        self.takes_one = self.takes_list and str in members
        if lists:
            members = [member for one in lists for member in _members(*get_args(one) or (str,))]
        self.choices = {choice: choice for choice in choices} or _choices(members)
        self._kinds = [_origin(member) for member in members]
        self._kinds += [bool for member in members if get_origin(member) is Literal and False in get_args(member)]
        self.takes_bool = bool in members
        self.reads_bool = bool in self._kinds
        self.takes_object = dict in self._kinds
        self.is_readable = bool(self.choices) or any(kind in (*_SCALARS, dict) for kind in self._kinds) or bool(lists)
        # argparse names it in "invalid int value: 'x'"
        self.__name__ = next((kind.__name__ for kind in (int, float) if kind in self._kinds), "value")

    def __call__(self, text: str) -> Any:
        if self.optional and text.lower() in ("none", "null"):
            return None
        if self.choices:
            if text not in self.choices:
                raise ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(self.choices)})")
            return self.choices[text]
        takes_text = str in self._kinds or object in self._kinds
        if dict in self._kinds and (text.startswith("{") or not takes_text):
            return _read_object(text)
        if bool in self._kinds and text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        if takes_text:
            return text
        if bool in self._kinds:
            raise ArgumentTypeError(f"invalid value: {text!r} (true or false is expected)")
        return _whole_number(text) if int in self._kinds else float(text)

    def joined(self, values: list[Any]) -> list[Any] | None:
        """The value of an option that takes several, from each of them."""
        if None in values and len(values) > 1:
            raise ArgumentTypeError("none is not expected beside other values")
        return None if values == [None] else values


def _whole_number(text: str) -> int:
    """An integer, which may be written as a float: `8.0`, `1e5`.

    Raises:
        ValueError: if it is none.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _read_object(text: str) -> dict[str, Any]:
    shown = repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
    value = read_json(text, lambda problem: ArgumentTypeError(f"invalid value: {shown}: {problem}"))
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"invalid value: {shown} (a JSON object is expected, such as '{{\"key\": 1}}')")
    return value


def _members(hint: Any) -> Iterator[Any]:
    """The types of a union; of any other hint itself."""
    if get_origin(hint) in (Union, types.UnionType):
        yield from get_args(hint)
    else:
        yield hint


def _origin(hint: Any) -> Any:
    return get_origin(hint) or hint


def _choices(members: list[Any]) -> dict[str, Any]:
    """Text to value, for names in a Literal and for enums; transformers writes `SomeEnum | str` and means the enum."""
    choices: dict[str, Any] = {}
    for member in members:
        if isinstance(member, type) and issubclass(member, enum.Enum):
            choices |= {choice.value: choice.value if str in members else choice for choice in member}
        elif get_origin(member) is Literal and str not in members:
            choices |= {name: name for name in get_args(member)}
    return choices


def default_of(field: "dataclasses.Field[Any]") -> Any:
    """The value of a field that nobody states."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def default_value(dataclass_type: type, name: str) -> Any:
    """The same, by the class and the name of the field."""
    return next(default_of(field) for field in dataclasses.fields(dataclass_type) if field.name == name)


def group_of(dataclass_type: type) -> OptionGroup:
    """The options of an arguments class that is imported."""
    hints = typing.get_type_hints(dataclass_type)
    own = dataclass_type.__annotations__
    options = []
    for field in dataclasses.fields(dataclass_type):
        if field.init:
            aliases = tuple(field.metadata.get("aliases", ()))
            is_own, text = field.name in own, field.metadata.get("help")
            choices = tuple(field.metadata.get("choices", ()))
            options.append(Option(field.name, hints[field.name], default_of(field), text, aliases, is_own, choices))
    base = None if all(option.is_own for option in options) else dataclass_type.__mro__[1].__name__
    # every class of options has a title, which `type` does not tell
    return OptionGroup(dataclass_type._argument_group_name, tuple(options), base)  # type: ignore[attr-defined]
