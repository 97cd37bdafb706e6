"""The pages tell the truth: what they say to type is understood, where they lead to exists, their code runs."""

import ast
import importlib
import re
import runpy
import shutil
import subprocess
import sys
import textwrap

import pytest

import gpt2_hf
from gpt2_hf.__main__ import main
from gpt2_hf.options import arguments
from gpt2_hf.options.fields import group_of
from gpt2_hf.options.parsing import parse
from gpt2_hf.trainer.callbacks import progress

from ..conftest import REPOSITORY
from .documents import ARGUMENTS, code_blocks, pages, parsed_words, shown_commands

PAGES = [pytest.param(page, id=str(page.relative_to(REPOSITORY))) for page in pages()]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page, monkeypatch):
    """Each option of each command exists, takes the value that it is given, and acts beside the others."""
    monkeypatch.chdir(REPOSITORY)
    text = page.read_text(encoding="utf-8")
    for line in shown_commands(text):
        if (found := parsed_words(line)) is None:
            continue
        command, words = found
        config = words.pop(words.index("--config") + 1) if "--config" in words else None
        words = [word for word in words if word not in ("--config", "--dry_run")]
        if config is not None and not config.startswith("training_args/"):
            assert config.endswith("resolved_config.json"), line
            config = "training_args/base.json"  # the record of a run is such a file
        if "--train_mix" in words:
            words[words.index("--train_mix") + 1] = code_blocks(text, "json")[0]  # the file that the page shows
        if command == "report" and words and not words[0].startswith("-"):
            words.insert(0, "--runs")
        if ARGUMENTS[command] == ARGUMENTS["train"] and "--use_cpu" not in words:
            words.append("--use_cpu")
        try:
            parse(ARGUMENTS[command], words, config)
        except ValueError as error:
            pytest.fail(f"{line}\n{error}")


# Options that pages name and that are not of a dataclass: of the commands themselves, of scripts, of other programs.
_OTHER_OPTIONS = {
    *("--config", "--dry_run", "--help", "--help-all", "--version"),
    *("--cases", "--final", "--fit", "--table"),
    *("--build", "--entrypoint", "--gpus", "--lr", "--shm-size", "--shutdown_timeout", "--user"),
}


@pytest.mark.parametrize("page", [page for page in PAGES if page.id != "CHANGELOG.md"])
def test_options_in_prose_exist(page):
    """What a sentence calls `--option` is one of some command, under this very name."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    named = {word for span in re.findall(r"`(--[^`\n]+)`", prose) for word in re.findall(r"(?<!\S)--[\w-]+", span)}
    classes = {cls for group in ARGUMENTS.values() for cls in group}
    options = [option for cls in classes for option in group_of(cls).options]
    names = {name for option in options for name in option.spellings}
    assert named <= names | _OTHER_OPTIONS


def test_commands_are_found():
    """The reader of commands sees those that are there: a pattern that matches nothing would prove nothing."""
    found = {page: [*filter(None, map(parsed_words, shown_commands(page.read_text("utf-8"))))] for page in pages()}
    assert {command for commands in found.values() for command, _ in commands} == set(ARGUMENTS)
    assert sum(map(len, found.values())) > 60
    assert parsed_words("torchrun --nproc_per_node 2 run_clm.py --config a.json --fsdp") == (
        "train",
        ["--config", "a.json", "--fsdp"],
    )


def test_a_wrong_option_in_a_page_is_found(tmp_path):
    """The check is not idle."""
    page = tmp_path / "page.md"
    page.write_text("```bash\ngpt2-hf evaluate --model_path x --strride 4\n```\n")
    (line,) = shown_commands(page.read_text())
    command, words = parsed_words(line)
    with pytest.raises(ValueError, match="stride"):
        parse(ARGUMENTS[command], words)


def slug(heading):
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Each file and each heading that a page links exists."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|path:)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{target} in {page}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in map(slug, headings), f"{target} in {page}"


@pytest.mark.parametrize("page", PAGES)
def test_files_in_commands_exist(page):
    """Scripts, configurations and tests that a page names by their path in the repository are there."""
    text = page.read_text(encoding="utf-8")
    folders, endings = "examples|training_args|benchmarks|gpt2_hf|tests|docs", "py|json|sh|sbatch|yaml|md|ipynb"
    pattern = rf"(?<![\w./-])((?:{folders})/[\w./-]+\.(?:{endings}))"
    missing = [name for name in re.findall(pattern, text) if not (REPOSITORY / name).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_python_in_pages_is_valid(page):
    """It parses, and what it imports from this package is there."""
    for code in code_blocks(page.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(textwrap.dedent(code))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpt2_hf":
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_readme_is_short():
    """At most 900 words, as `wc -w` counts them, and a picture in the first screen."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    assert "![" in "\n".join(text.splitlines()[:40])


def test_every_arguments_class_is_in_the_reference():
    """A new class of options cannot be forgotten; its options are read from it when the pages are built."""
    page = (REPOSITORY / "docs" / "reference" / "options.md").read_text(encoding="utf-8")
    listed = re.findall(r"^```\{options\} ([\w.]+):(\w+)$", page, flags=re.M)
    classes = {getattr(importlib.import_module(module), name) for module, name in listed}
    assert classes == {cls for group in ARGUMENTS.values() for cls in group}
    stated = {value for value in vars(arguments).values() if hasattr(value, "_argument_group_name")}
    assert stated <= classes


def test_every_public_name_is_in_the_reference():
    """`gpt2_hf.__all__` and the page agree."""
    page = (REPOSITORY / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: gpt2_hf\.(\w+)", page, flags=re.M)) - {"errors"}
    assert documented == set(gpt2_hf.__all__) - {"__version__"}


def test_the_options_of_a_page_are_those_of_its_class(monkeypatch):
    """The directive shows each option with the values, the default and the names that the help shows."""
    pytest.importorskip("sphinx", reason="the docs are built with the extra [docs]")
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs"))
    directive = importlib.import_module("options_directive")
    options = {option.name: option for option in directive.group_of(ARGUMENTS["train"][2]).options}
    rate = options["per_device_train_batch_size"]
    assert directive.names_of(rate) == ["--per_device_train_batch_size", "--batch_size"]
    assert directive.kind_of(rate) == "N" and directive.default_of(rate) == "8"
    assert directive.kind_of(options["precision"]) == "auto | fp32 | bf16 | fp16"
    assert directive.default_of(options["report_to"]) == "tensorboard"
    assert directive.default_of(options["max_grad_norm"]) == "1.0"


@pytest.fixture
def place(tmp_path, monkeypatch, finished_run, documents):
    """A folder as the tutorial leaves it: two runs and a text."""
    monkeypatch.chdir(tmp_path)
    for name in ("runs/quickstart", "runs/book", "checkpoints"):
        shutil.copytree(finished_run, tmp_path / name)
    for name, between in (("book.txt", "\n\n"), ("other.txt", "\n\n"), ("lines.txt", "\n")):
        (tmp_path / name).write_text(between.join(documents[:40]), encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "The assert statement"}\n{"prompt": "A name"}\n')
    return tmp_path


def test_the_tutorial_after_training(place, capsys):
    """Its commands from generating to exporting run as they stand, and its Python loads the model."""
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = [found for found in map(parsed_words, shown_commands(text)) if found]
    done = []
    for command, words in commands:
        if command in ("evaluate", "generate", "export", "report"):
            extra = ["--max_new_tokens", "4"] if command == "generate" else []
            assert main([command, *words, *extra]) == 0, (command, words, capsys.readouterr().err)
            done.append(command)
    assert set(done) == {"evaluate", "generate", "export", "report"}
    assert "exported" in capsys.readouterr().out
    assert (place / "comparison.png").is_file() and (place / "exported" / "config.json").is_file()
    assert (place / "exported" / "model.safetensors").is_file()
    (code,) = code_blocks(text, "python")
    names = {}
    exec(code, names)
    assert type(names["model"]).__name__ == "GPT2HFForCausalLM"


def test_the_lines_of_the_tutorial_are_such_as_are_printed():
    """Number for number, in the words of the terminal's callback."""
    text = (REPOSITORY / "docs" / "tutorial.md").read_text(encoding="utf-8")
    forms = [re.sub(r"\\\{.*?\\\}", r"[\\d.,e-]+", re.escape(form)) for form in progress._FORMATS.values()]
    forms.append(r"[\d:]+ elapsed|[\d:]+ to go|budget [\d:]+ left")
    lines = code_blocks(text.split("### What the numbers mean")[1], "text")[0].splitlines()
    assert [line[:5] for line in lines] == ["step ", "step "]
    for line in lines:
        for part in line.split(": ", 1)[1].split(", "):
            assert re.fullmatch("|".join(forms), part), part


def test_a_run_goes_on_from_its_record(place, capsys):
    """`--config resolved_config.json --resume_from latest`, as README and tutorial say: nothing is left to train."""
    for page, run in (("README.md", "runs/first_book"), ("docs/tutorial.md", "runs/book")):
        line = f"gpt2-hf train --config {run}/resolved_config.json --resume_from latest"
        assert line in (REPOSITORY / page).read_text(encoding="utf-8").splitlines()
    words = ["--config", "runs/book/resolved_config.json", "--resume_from", "latest"]
    # this run was made in another folder, which its record names
    assert main(["train", *words, "--checkpoint_dir", "runs/book"]) == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_the_python_of_the_readme(place):
    """It trains, and leaves the model that the README then loads."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (code,) = code_blocks(text, "python")
    assert "max_steps=1000" in code
    exec(code.replace("max_steps=1000", "max_steps=2"), {})
    (folder,) = re.findall(r'from_pretrained\("(.+)"\)', text)
    assert (place / folder / "model.safetensors").is_file()


def test_scoring_and_writing(place):
    """The page's commands for one process run as they stand."""
    text = (REPOSITORY / "docs" / "how-to" / "use-a-model.md").read_text(encoding="utf-8")
    for line in shown_commands(text):
        found = parsed_words(line)
        if found is None or line.startswith("torchrun") or "--stride" in line:
            continue
        command, words = found
        if command == "generate":
            if "--prompt" not in line:
                continue  # asks at a terminal
            words += ["--max_new_tokens", "4"]
        assert main([command, *words]) == 0, line
    assert (place / "texts.jsonl").is_file()


def test_the_trainer_on_a_dataset_then_with_a_teacher(place):
    """The script of one page trains, evaluates, and leaves a best model; that of the other page continues it."""
    pages = (REPOSITORY / "docs" / "how-to" / f"{name}.md" for name in ("trainer", "distillation"))
    (first,), (second,) = (code_blocks(page.read_text(encoding="utf-8"), "python") for page in pages)
    (place / "script.py").write_text(first.replace("max_steps=20", "max_steps=4").replace("_steps=10", "_steps=2"))
    names = runpy.run_path(str(place / "script.py"))
    assert (place / "runs" / "mine" / "best_model" / "model.safetensors").is_file()
    teacher = gpt2_hf.GPT2HFForCausalLM(gpt2_hf.GPT2HFConfig(n_layer=1, n_embd=32, n_head=1, n_positions=128))
    teacher.save_pretrained(place / "runs" / "teacher_1" / "best_model")
    assert "max_steps=200" in second
    exec(second.replace("max_steps=200", "max_steps=2"), names)
    assert names["trainer"].state.global_step == 2
    assert (place / "runs" / "distilled" / "best_model" / "model.safetensors").is_file()


def test_layers_for_quantisation():
    """The way round of the page: every projection is an nn.Linear after it."""
    from torch import nn

    code = code_blocks((REPOSITORY / "docs" / "how-to" / "quantisation.md").read_text(encoding="utf-8"), "python")[0]
    names = {}
    exec(code, names)
    kinds = [type(module) for name, module in names["model"].named_modules() if name.endswith(("c_attn", "c_fc"))]
    assert len(kinds) == 4 and set(kinds) == {nn.Linear}


def test_lora_on_the_page():
    """The lines that matter make an adapter."""
    pytest.importorskip("peft", reason="the page is about peft, which gpt2_hf does not depend on")
    (code,) = code_blocks((REPOSITORY / "docs" / "how-to" / "lora.md").read_text(encoding="utf-8"), "python")
    names = {}
    exec(code, names)
    assert names["model"].peft_config


def test_ci_builds_the_docs_as_the_readme_says():
    """One command for both."""
    line = 'pip install -c constraints.txt -e ".[docs]" && sphinx-build -W --keep-going -n docs docs/_build'
    assert line in (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert line in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_pages_build(tmp_path):
    """Sphinx finds nothing to complain of."""
    pytest.importorskip("sphinx", reason="the docs are built with the extra [docs]")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "docs", str(tmp_path / "html")]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "--learning_rate" in (tmp_path / "html" / "reference" / "options.html").read_text(encoding="utf-8")
