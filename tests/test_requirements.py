"""pyproject.toml and constraints.txt agree: what the README installs can be installed, with every extra."""

import ast
import re
import sys
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def pins():
    """The versions of constraints.txt, by canonical names."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def needed(requirements, extras=(), seen=None):
    """Each requirement, with what the installed packages require in their turn: `(who, requirement)`."""
    seen = set() if seen is None else seen
    for who, text in requirements:
        requirement = Requirement(text)
        markers = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is not None and not any(requirement.marker.evaluate(one) for one in markers):
            continue
        yield who, requirement
        key = canonicalize_name(requirement.name), *sorted(requirement.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            inner = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:  # an extra that is not installed here
            continue
        yield from needed([(requirement.name, one) for one in inner], requirement.extras, seen)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_constraints_let_every_extra_be_installed(extra):
    """No pinned version is one that something of the extra refuses, as far as it is installed here."""
    versions = pins()
    requirements = [("pyproject.toml", text) for text in EXTRAS[extra]]
    refused = [
        f"{who} needs {requirement}, constraints.txt has {pinned}"
        for who, requirement in needed(requirements)
        if (pinned := versions.get(canonicalize_name(requirement.name))) is not None
        and not requirement.specifier.contains(pinned, prereleases=True)
    ]
    assert not refused, refused


def test_whatever_is_imported_is_required():
    """No package is there only because another one needs it today."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "gpt2_hf").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    modules = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {"_typeshed"}
    required = {canonicalize_name(Requirement(text).name) for texts in EXTRAS.values() for text in texts}
    packages = metadata.packages_distributions()
    assert modules and not {
        module for module in modules if required.isdisjoint(map(canonicalize_name, packages.get(module, [module])))
    }


def test_the_constraints_are_sorted_and_name_nothing_twice():
    """So that a change of one is a change of one line."""
    names = re.findall(r"^([\w.-]+)==", (REPOSITORY / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert len(pins()) == len(names) == len(set(names)) and names == sorted(names, key=str.lower)
