"""The options of an arguments class, read from its source instead of from the imported class.

Importing `transformers.TrainingArguments` takes seconds, because it imports torch; reading its source takes a tenth of
one. So `train --help` and the check for unknown options do not wait. Nothing is decided here: what passes is parsed
again by the imported class, and a test compares the two, field by field.
"""

import ast
import builtins
import dataclasses
import importlib.util
import typing
from pathlib import Path
from typing import Any, NamedTuple

from .fields import Option, OptionGroup, spellings

_PACKAGE = Path(__file__).resolve().parent.parent


class ClassInSource(NamedTuple):
    """Where a class stands: in a file of this package, or of another one, which is found and not imported."""

    name: str
    file: str
    package: str | None = None

    @property
    def path(self) -> Path:
        """The file.

        Raises:
            FileNotFoundError: if the package is not there, or has no folder.
        """
        if self.package is None:
            return _PACKAGE / self.file
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError(self.package)
        return Path(spec.submodule_search_locations[0]) / self.file


TRAINING = (
    ClassInSource("GPT2HFTrainingArguments", "options/training_arguments.py"),
    ClassInSource("TrainingArguments", "training_args.py", "transformers"),
)
TOKENIZER_TRAINING = (ClassInSource("TokenizerTrainingArguments", "data/tokenizer_training.py"),)


def group_in_source(own: ClassInSource, base: ClassInSource | None = None) -> OptionGroup | None:
    """The options that a class states, and those of the class that it inherits from.

    Returns:
        The options; `None` where the source cannot be read, as in a program that is packed into one file.
    """
    try:
        body = _body(own)
        inherited = _options(_body(base)) if base is not None else {}
    except (OSError, SyntaxError, LookupError):
        return None
    titles = [_constant(node.value) for node in body if isinstance(node, ast.Assign) and _is_title(node.targets[0])]
    options = {name: dataclasses.replace(option, is_own=False) for name, option in inherited.items()}
    return OptionGroup(str(titles[0]), tuple({**options, **_options(body)}.values()), base.name if base else None)


def _body(place: ClassInSource) -> list[ast.stmt]:
    tree = ast.parse(place.path.read_text(encoding="utf-8"))
    bodies = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == place.name]
    return bodies[0]


def _is_title(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "_argument_group_name"


def _options(body: list[ast.stmt]) -> dict[str, Option]:
    fields = [node for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)]
    found = [option for option in map(_option, fields) if option is not None]
    return {option.name: option for option in found}


def _option(node: ast.AnnAssign) -> Option | None:
    """Read `name: hint = option(default, help, *aliases)`, or `= field(default=..., metadata={"help": ...})`."""
    assert isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call)
    words = {word.arg: word.value for word in node.value.keywords}
    if "init" in words:
        return None
    name, hint = node.target.id, _hint(node.annotation)
    if node.value.args:
        default, text, *aliases = map(_constant, node.value.args)
        return Option(name, hint, default, text, tuple(s for alias in aliases for s in spellings(alias)))
    metadata = _metadata(words)
    return Option(name, hint, _default(words), metadata.get("help"), choices=tuple(metadata.get("choices") or ()))


def _metadata(words: dict[str | None, ast.expr]) -> dict[str, Any]:
    node = words.get("metadata")
    if not isinstance(node, ast.Dict):
        return {}
    return {_constant(key): _constant(value) for key, value in zip(node.keys, node.values, strict=True)}


def _default(words: dict[str | None, ast.expr]) -> Any:
    factory = words.get("default_factory")
    if isinstance(factory, ast.Name):
        return getattr(builtins, factory.id, lambda: None)()
    return _constant(words.get("default"))


def _constant(node: ast.expr | None) -> Any:
    """The value of an expression without names; `None` for any other."""
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


class _Names(dict[str, Any]):
    """The names in a hint: Python's own types, and `object` for any other."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, object)


def _hint(annotation: ast.expr) -> Any:
    code = compile(ast.Expression(annotation), "<hint>", "eval")
    return eval(code, {}, _Names({name: getattr(typing, name) for name in ("Literal", "Optional", "Union")}))
