"""The package's structure: modules import only what stands to their left, and importing is all they do."""

import ast
import graphlib
import os
import subprocess
import sys

import pytest

import gpt2_hf

from .conftest import REPOSITORY

# The subpackages, from the bottom up: each imports only from those before it.
SUBPACKAGES = ["model", "runtime", "options", "checkpoints", "data", "trainer", "commands", "planning", "job"]
# What stands beside them: these may be imported from every subpackage but the model, which travels alone.
BESIDE = ["__init__", "auto_classes", "errors", "metrics", "perplexity"]
PACKAGE = REPOSITORY / "gpt2_hf"
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_subpackages(path, source=None):
    """The subpackages, or modules beside them, that a file imports from; it names the package itself nowhere."""
    here = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.split(".")[0] == "gpt2_hf" for name in absolute)
        elif node.level:
            base = here[: len(here) - node.level + 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                first = [*base, *name.split(".")][0]
                yield first if first in SUBPACKAGES or first in BESIDE else "__init__"
        else:
            assert node.module.split(".")[0] != "gpt2_hf"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_subpackages_import_only_from_below(path):
    """Job, planning, commands, trainer, data, checkpoints, options, runtime, model: none reaches up."""
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name in ("__init__", "__main__"):
        return  # the entry points, which import from all of them
    assert name in SUBPACKAGES or name in BESIDE, f"{name} is no subpackage of the design"
    allowed = [] if name in BESIDE else [name, *SUBPACKAGES[: SUBPACKAGES.index(name)]]
    allowed += [] if name == "model" else BESIDE
    for imported in imported_subpackages(path):
        assert imported in allowed, f"{name} imports from {imported}"


def test_every_name_of_an_import_counts():
    """Also where several subpackages are named in one line."""
    path = PACKAGE / "options" / "parsing.py"
    assert list(imported_subpackages(path, "from .. import errors, job")) == ["errors", "job"]


def test_modules_do_not_import_each_other_in_circles():
    """Nor within functions; imports for annotations alone, and of what the package itself keeps, do not count."""
    modules = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in FILES}
    graph = {}
    for here, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for branch in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
            if ast.unparse(branch.test) == "TYPE_CHECKING":
                branch.body = []
        graph[here] = set()
        for node in [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]:
            base = (*here[: len(here) - node.level], *(node.module.split(".") if node.module else ()))
            candidates = [[base, (*base, alias.name), (*base, "__init__")] for alias in node.names]
            graph[here].update(next(name for name in names if name in modules) for names in candidates)
    del graph["__init__",]
    graphlib.TopologicalSorter(graph).prepare()


def test_every_folder_of_the_package_is_a_subpackage_that_says_what_it_is_for():
    """In three lines: what it knows, what comes in, what goes out."""
    subpackages = [path for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert {path.name for path in subpackages} == set(SUBPACKAGES)
    for path in subpackages:
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


def run(code, *arguments):
    """What a program of its own prints."""
    command = [sys.executable, "-c", code, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=REPOSITORY, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_is_immediate():
    """Neither torch nor transformers is imported before something of theirs is used.

    What this package watches for instead does not change how a missing module is reported.
    """
    code = """
import gpt2_hf, sys
print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])
try:
    import transformers.models.nothing_of_this_name
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run(code).splitlines() == ["[]", "transformers.models.nothing_of_this_name"]


# What a host program may have imported before or after this package, in the middle of which ours must not be imported.
ORDERS = [
    "import transformers, gpt2_hf",
    "from transformers import AutoConfig; import gpt2_hf",
    "from transformers import AutoModelForCausalLM; import gpt2_hf",
    "import gpt2_hf, transformers.modeling_layers",
    "import gpt2_hf.model.modeling_gpt2_hf",
]
# Each program in a fork of a process that has imported what takes the time, and neither transformers nor this package.
FORKS = """
import gc, os, sys
import safetensors.torch, tokenizers, torch, torch._dynamo, torch.distributed.checkpoint.state_dict
import torch.distributed.tensor, torch.nn.attention.flex_attention, torch.utils.checkpoint

assert not {"transformers", "gpt2_hf"} & {name.partition(".")[0] for name in sys.modules}
gc.freeze()
for program in sys.argv[1:]:
    if (child := os.fork()) == 0:
        exec(program, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, program
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_the_auto_classes_know_the_models_in_every_order_of_imports():
    """All three of them, and the models know that their source is saved beside the weights."""
    use = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
config = AutoConfig.for_model("gpt2_hf", n_embd=8, n_layer=1, n_head=1, n_positions=8, vocab_size=16)
models = [auto.from_config(config) for auto in (AutoModel, AutoModelForCausalLM)]
print(*[type(model).__name__ for model in models], *[one._auto_class for one in (config, *models)])
import sys
print(any("auto_classes" in type(finder).__module__ for finder in sys.meta_path))
"""
    lines = run(FORKS, *[f"{imports}\n{use}" for imports in ORDERS]).splitlines()
    names = "GPT2HFModel GPT2HFForCausalLM AutoConfig AutoModel AutoModelForCausalLM"
    assert lines == [names, "False"] * len(ORDERS)  # what is done need not be watched for


def test_saved_models_load_without_remote_code_and_in_spawned_workers(tmp_path):
    """`import gpt2_hf` is all that a program needs; what it sends to a worker brings the import with it.

    The program is `python -m mine.program`, whose package imports this one: that is no `python -m gpt2_hf`. A config
    by itself is saved with its source, too, where no Auto class has been asked for.
    """
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("import gpt2_hf\n")
    (tmp_path / "mine" / "program.py").write_text("""
import multiprocessing

import gpt2_hf


def describe(config):
    from transformers import AutoModel

    return type(AutoModel.from_config(config)).__name__


if __name__ == "__main__":
    config = gpt2_hf.GPT2HFConfig(n_embd=8, n_layer=1, n_head=1, n_positions=8, vocab_size=16)
    config.save_pretrained("saved_config")

    from transformers import AutoConfig, AutoModelForCausalLM

    print(AutoConfig.for_model("gpt2_hf").n_embd)
    gpt2_hf.GPT2HFForCausalLM(config).save_pretrained("saved")
    model = AutoModelForCausalLM.from_pretrained("saved")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(type(model).__module__, pool.apply(describe, (config,)))
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    command = [sys.executable, "-m", "mine.program"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path, env=environment)
    assert result.stdout.splitlines() == ["768", "gpt2_hf.model.modeling_gpt2_hf GPT2HFModel"], result.stderr
    assert (tmp_path / "saved_config" / "configuration_gpt2_hf.py").is_file()


SETTINGS = """
import csv, importlib, logging, os, pkgutil, signal, sys
import accelerate, datasets, evaluate, matplotlib, numpy, torch, transformers  # what these change is their own matter
from transformers.utils import logging as transformers_logging

def settings():
    return {
        "signals": {int(number): signal.getsignal(number) for number in signal.valid_signals()},
        "csv": csv.field_size_limit(),
        "environment": {name: os.environ.get(name) for name in os.environ if not name.startswith("TORCHINDUCTOR")},
        "attention": [torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()],
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "numbers": [torch.get_default_dtype(), torch.get_float32_matmul_precision(), numpy.geterr()],
        "random": [torch.initial_seed(), str(numpy.random.get_state()[1][:8])],
        "deterministic": [torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark],
        "logging": [logging.root.level, transformers_logging.get_verbosity(), logging.root.handlers],
        "progress bars": transformers_logging.is_progress_bar_enabled(),
        "hooks": [sys.excepthook, sys.unraisablehook, sys.getrecursionlimit()],
        "backend": matplotlib.get_backend(auto_select=False),
    }

before = settings()
import gpt2_hf
modules = [module.name for module in pkgutil.walk_packages(gpt2_hf.__path__, "gpt2_hf.")]
for name in modules:
    importlib.import_module(name)
    after = settings()
    assert after == before, (name, [setting for setting in after if after[setting] != before[setting]])
print(len(modules))
"""


def test_importing_changes_no_setting_of_the_process():
    """Of a host program that uses one function of this package, everything else stays as it was."""
    assert int(run(SETTINGS)) >= len(FILES) - 1  # all but the package itself
