"""The package's structure: modules import only what stands to their left, and importing is all they do."""

import ast
import os
import subprocess
import sys

import pytest

import gpt2_hf

from .conftest import REPOSITORY

# The rooms of the design, from the bottom up: a room imports only from those before it.
ROOMS = ["model", "runtime", "options", "checkpoints", "data", "trainer", "commands", "planning", "job"]
# What stands beside the rooms: these may be imported from every room but the model, which travels alone.
BESIDE = ["__init__", "auto_classes", "errors", "metrics"]
PACKAGE = REPOSITORY / "gpt2_hf"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(path):
    """The rooms, or modules beside them, that a file imports from."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            assert not (isinstance(node, ast.Import) and any(a.name.startswith("gpt2_hf.") for a in node.names))
        elif node.level:
            base = here[: len(here) - node.level + 1]
            names = node.module.split(".") if node.module else [node.names[0].name]
            first = [*base, *names][0]
            yield first if first in ROOMS or first in BESIDE else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_rooms_import_only_from_below(path):
    """Job, planning, commands, trainer, data, checkpoints, options, runtime, model: no room reaches up."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ("__init__", "__main__"):
        return  # the doors: all rooms lie behind them
    assert room in ROOMS or room in BESIDE, f"{room} is no room of the design"
    allowed = [] if room in BESIDE else [room, *ROOMS[: ROOMS.index(room)]]
    allowed += [] if room == "model" else BESIDE
    for imported in imported_rooms(path):
        assert imported in allowed, f"{room} imports from {imported}"


def test_every_folder_of_the_package_is_a_room_that_says_what_it_is_for():
    """In three lines: what it knows, what comes in, what goes out."""
    rooms = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {path.name for path in rooms} == set(ROOMS)
    for path in rooms:
        docstring = ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8")))
        assert docstring and len(docstring.splitlines()) >= 3, path.name


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=lambda path: path.name)
def test_files_that_travel_with_a_model_import_relatively(path):
    """trust_remote_code follows `from .name import` alone; any other import of the package would break the copy."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "gpt2_hf" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert module.split(".")[0] != "gpt2_hf"
            assert node.level == 0 or (node.level == 1 and module and "." not in module)


def test_public_names_exist():
    """Every public name can be had from the package, and misspelt ones are refused."""
    for name in gpt2_hf.__all__:
        assert getattr(gpt2_hf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        _ = gpt2_hf.Trianer


def test_importing_registers_the_auto_classes():
    """`import gpt2_hf` alone makes AutoConfig know the model type."""
    code = "import gpt2_hf; from transformers import AutoConfig; print(AutoConfig.for_model('gpt2_hf').n_embd)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "768", result.stderr


def test_importing_registers_under_a_module_of_the_users_own(tmp_path):
    """`python -m mine.main`, whose package imports this one, is no `python -m gpt2_hf`."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import gpt2_hf\n")
    code = "from transformers import AutoConfig; print(AutoConfig.for_model('gpt2_hf').n_embd)\n"
    (tmp_path / "mine" / "main.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, "-m", "mine.main"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert result.stdout.strip() == "768", result.stderr
