"""Secrets stay out of what is written and printed: tokens, keys, passwords, and the credentials in addresses.

In: options, the environment, a text. Out: the same without what only the user and a server may know.
A secret option is never written. A resumed run takes it from the command line, a config or the environment again.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"

# transformers masks what ends in _token; reporters and clouds have the others (WANDB_API_KEY, AWS_SECRET_ACCESS_KEY).
_WORD = r"(?:token|key|secret|password|passwd|credentials)"
_SECRET_NAME = re.compile(rf"(?:^|.*[_-]|.*api){_WORD}", re.IGNORECASE)
# Shorter values are words that other texts have too.
_SHORTEST = 6

_IN_ADDRESS = re.compile(r"(?<=://)[^\s/?#'\"<>]*@")
_IN_QUERY = re.compile(rf"([?&;][\w.-]*(?:{_WORD}|signature|sig)=)[^&\s#'\"]+", re.IGNORECASE)
_IN_COMMAND = re.compile(rf"(--[\w-]*[_-]{_WORD}[= ])(?!{re.escape(HIDDEN)})\S+", re.IGNORECASE)
_IN_JSON = re.compile(rf"(\"[\w-]*[_-]{_WORD}\"\s*:\s*)\"[^\"]*\"", re.IGNORECASE)
_OF_THE_HUB = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")

# Values that this process was given as secrets: an error message of a library may repeat one without its name.
_remembered: set[str] = set()


def is_secret(name: str) -> bool:
    """Whether an option, a key of an object or an environment variable is a secret by its name."""
    return _SECRET_NAME.fullmatch(name) is not None


def remember(options: Mapping[str, Any]) -> None:
    """Let `hide` know the values of secret options, wherever in a text they stand."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            remember(value)
        elif is_secret(str(name)) and isinstance(value, str):
            _remembered.add(value)


def remember_arguments(arguments: Iterable[str]) -> None:
    """Let `hide` know the values of secret options of a command line that is not parsed yet."""
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
        else:
            value = argument
        remember({name: value})


def hide(text: str) -> str:
    """A text with `***` in place of each secret: those remembered, those of the environment, and by their form."""
    in_environment = (value for name, value in os.environ.items() if is_secret(name))
    for value in sorted({*_remembered, *in_environment}, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    text = _IN_ADDRESS.sub(f"{HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _IN_COMMAND.sub(rf"\1{HIDDEN}", text)
    text = _IN_JSON.sub(rf'\1"{HIDDEN}"', text)
    return _OF_THE_HUB.sub(HIDDEN, text)


def secret_names(options: Any) -> list[str]:
    """Names of the secrets that have a value, at any depth."""
    if not isinstance(options, Mapping):
        return []
    names = [name for name, value in options.items() if is_secret(str(name)) and isinstance(value, str)]
    return names + [inner for value in options.values() for inner in secret_names(value)]


def without_secrets(value: Any) -> Any:
    """Options or circumstances as they may be written: no secret option, at any depth, and none in a text."""
    if isinstance(value, Mapping):
        # an object under such a name is no secret, but a text of `--train_mix`
        kept = [name for name, inner in value.items() if isinstance(inner, Mapping) or not is_secret(str(name))]
        return {name: without_secrets(value[name]) for name in kept}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return hide(value) if isinstance(value, str) else value
