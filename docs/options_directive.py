"""A Sphinx directive that lists the options of an arguments class, read from the class when the pages are built.

    ```{options} gpt2_hf.options.arguments:ModelArguments
    ```

`:inherited:` lists those that the class merely inherits, which are transformers', instead of its own.
"""

import importlib
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from gpt2_hf.options.fields import Option, group_of

_MOST_CHOICES = 12


def kind_of(option: Option) -> str:
    """What may be typed after an option, as its help shows it."""
    reader = option.reader
    if reader.choices and len(reader.choices) <= _MOST_CHOICES:
        return " | ".join(reader.choices)
    if reader.takes_bool:
        return "true | false"
    kind = {"int": "N", "float": "X"}.get(reader.__name__, "TEXT")
    return f"{kind} ..." if reader.takes_list else kind


def default_of(option: Option) -> str:
    """The default as it is typed."""
    value = getattr(option.default, "value", option.default)
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def names_of(option: Option) -> list[str]:
    """The spellings with underscores; each may be written with hyphens as well."""
    return [name for name in option.spellings if "-" not in name.lstrip("-")]


class OptionsDirective(SphinxDirective):
    """A definition list: the names and values of an option, what it does, and its default."""

    required_arguments = 1
    option_spec = {"inherited": directives.flag}

    def run(self) -> list[nodes.Node]:
        module, _, name = self.arguments[0].partition(":")
        group = group_of(getattr(importlib.import_module(module), name))
        wants_own = "inherited" not in self.options
        options = [option for option in group.options if option.is_own == wants_own]
        readable = [option for option in options if option.reader.is_readable]
        return [nodes.definition_list("", *(self._item(group.title, option) for option in readable))]

    def _item(self, title: str, option: Option) -> nodes.definition_list_item:
        names: list[nodes.Node] = []
        for name in names_of(option):
            names += [nodes.literal("", name), nodes.Text(" ")]
        term = nodes.term("", "", *names, nodes.emphasis("", kind_of(option)))
        term["ids"].append(f"{title}-{option.name}")
        text = f"{' '.join((option.help or '').split())} "
        paragraph = nodes.paragraph("", "", nodes.Text(text), nodes.Text("Default: "))
        paragraph += nodes.literal("", default_of(option))
        return nodes.definition_list_item("", term, nodes.definition("", paragraph))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("options", OptionsDirective)
    return {"parallel_read_safe": True}
