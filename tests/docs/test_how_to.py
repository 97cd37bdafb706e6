"""What the how-to pages say to type is understood, and their tokenizer for characters is nanoGPT's."""

import re
import shlex

import pytest
from transformers import AutoTokenizer

from gpt2_hf.options import arguments
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

from ..conftest import REPOSITORY, read_json

ARGUMENTS = {
    "import": [arguments.ImportArguments],
    "export": [arguments.ExportArguments],
    "generate": [arguments.GenerationArguments],
    "evaluate": [arguments.EvaluationArguments, arguments.DataArguments],
    "train": [arguments.ModelArguments, arguments.DataArguments, GPT2HFTrainingArguments],
}


def blocks(page, language):
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("name", ["nanogpt", "gguf", "onnx", "chat"])
def test_the_commands_of_the_pages_are_understood(name, monkeypatch, tmp_path):
    """Each option of each command exists and acts."""
    monkeypatch.chdir(tmp_path)
    page = REPOSITORY / "docs" / "how-to" / f"{name}.md"
    text = "\n".join(blocks(page, "bash")) + "\n".join(re.findall(r"`(gpt2-hf [^`]+)`", page.read_text("utf-8")))
    commands = [shlex.split(line) for line in re.findall(r"gpt2-hf (.+)", text)]
    assert commands
    for command, *options in commands:
        config = options.pop(options.index("--config") + 1) if "--config" in options else None
        options = [option for option in options if option != "--config"]
        parse(ARGUMENTS[command], options, config and str(REPOSITORY / config))


def test_the_context_for_llama_cpp_is_the_quickstarts():
    """Beyond a GPT-2's positions it has no embeddings."""
    page = (REPOSITORY / "docs" / "how-to" / "gguf.md").read_text(encoding="utf-8")
    contexts = {int(size) for size in re.findall(r"n(?:um)?_ctx[= ](\d+)", page)}
    assert contexts == {read_json(REPOSITORY / "training_args" / "quickstart.json")["max_length"]}


def test_the_tokenizer_for_characters_is_nanogpts(tmp_path, monkeypatch):
    """Each character has the id that nanoGPT's prepare.py gives it, and comes back."""
    monkeypatch.chdir(tmp_path)
    text = "First Citizen:\nBefore we proceed, hear me speak.\n\nAll:\n  Speak!"
    folder = tmp_path / "data" / "shakespeare_char"
    folder.mkdir(parents=True)
    (folder / "input.txt").write_text(text)
    (snippet,) = blocks(REPOSITORY / "docs" / "how-to" / "nanogpt.md", "python")
    exec(snippet, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "characters")
    ids = tokenizer(text).input_ids
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert tokenizer.decode(ids) == text
