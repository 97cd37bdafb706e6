"""The package's structure: modules import only what stands to their left, and importing is all they do."""

import ast
import os
import subprocess
import sys

import pytest

import gpt2_hf

from .conftest import REPOSITORY

# The design's row, left to right; modules of one rank may not import each other unless the rank is a package.
RANKS = [
    ["own_process"],
    [
        "errors",
        "distributed",
        "stopwatch",
        "state_files",
        "chunked_loss",
        "cpu_memory",
        "dropout",
        "packed_weights",
        "random_state",
        "schedule",
        "utilization",
    ],
    ["chunked_attention", "hub", "fallbacks", "stop_signals", "precision", "unused_tokens"],
    ["configuration_gpt2_hf", "metrics", "checkpoints", "optimizer", "run_lock", "device_settings"],
    ["sharding"],
    ["arguments", "modeling_gpt2_hf"],
    ["training_arguments"],
    ["parsing"],
    ["tokenizer"],
    ["data", "text_units"],
    ["model_loading"],
    ["callbacks"],
    ["checkpointing"],
    ["exact_evaluation"],
    ["trainer"],
    ["evaluation", "generation", "export", "report", "probe", "parallel_plan", "tokenizer_training"],
    ["plan"],
    ["run"],
    ["resolved_config"],
    ["resuming"],
    ["training"],
    ["__main__"],
]
RANK_OF = {name: rank for rank, names in enumerate(RANKS) for name in names}
FILES = sorted((REPOSITORY / "gpt2_hf").rglob("*.py"))


def module_of(path):
    """The top-level module or package that a file belongs to."""
    relative = path.relative_to(REPOSITORY / "gpt2_hf")
    return relative.parts[0].removesuffix(".py")


def imported_modules(path):
    """Modules of this package that a file imports, by their top-level name."""
    depth_of_package = len(path.relative_to(REPOSITORY / "gpt2_hf").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth_of_package:
            if node.module:
                yield node.module.split(".")[0]
            else:
                yield from (alias.name for alias in node.names if alias.name in RANK_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_modules_import_only_from_their_left(path):
    """Arguments, tokenizer, data, model, trainer, uses of the model: no module reaches back."""
    module = module_of(path)
    if module == "__init__":
        return
    assert module in RANK_OF, f"{module} has no place in the row"
    for imported in imported_modules(path):
        if imported != module:
            assert RANK_OF[imported] < RANK_OF[module], f"{module} imports {imported}"


@pytest.mark.parametrize(
    "name",
    ["configuration_gpt2_hf", "modeling_gpt2_hf", "chunked_loss", "chunked_attention", "dropout", "unused_tokens"],
)
def test_files_that_travel_with_a_model_import_relatively(name):
    """trust_remote_code copies these files; an absolute import of the package would break them."""
    text = (REPOSITORY / "gpt2_hf" / f"{name}.py").read_text(encoding="utf-8")
    assert "from gpt2_hf" not in text and "import gpt2_hf" not in text


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
