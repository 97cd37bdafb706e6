"""The example scripts for import, export and LoRA run as their first lines say."""

import runpy
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from gpt2_hf import GPT2HFForCausalLM

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run_example(tmp_path, monkeypatch, capsys):
    """Run an example as a user would, in a folder of its own, and return what it prints."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("script", ["import_gpt2.py", "export_gpt2.py", "lora.py"])
def test_examples_state_their_command(script):
    """The first lines of each example hold the command that runs it."""
    head = (EXAMPLES / script).read_text(encoding="utf-8")[:400]
    assert f"python examples/{script} --model_path" in head


def test_import_then_export(tmp_path, run_example):
    """Imported weights load with the Auto classes, and exporting them gives stock GPT-2 back."""
    printed = run_example("import_gpt2.py", "--output_dir", "imported")
    assert "bitwise the same: True" in printed
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "imported")) is GPT2HFForCausalLM
    printed = run_example("export_gpt2.py", "--model_path", "imported", "--output_dir", "exported")
    assert "GPT2LMHeadModel says:\nThe" in printed
    assert GPT2LMHeadModel.from_pretrained(tmp_path / "exported").config.vocab_size == 50257


def test_lora(tmp_path, run_example):
    """The LoRA example trains an adapter that loads again."""
    pytest.importorskip("peft", reason="the LoRA example needs peft, which gpt2_hf does not depend on")
    printed = run_example("lora.py", "--output_dir", "adapter", "--max_steps", "8")
    losses = [float(line.split("'loss': '")[1].split("'")[0]) for line in printed.splitlines() if "'loss'" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert "merged it is a GPT2HFForCausalLM" in printed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
