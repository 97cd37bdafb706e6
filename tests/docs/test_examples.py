"""The examples run, and are listed with the command that their first lines state."""

import re
import runpy
import shutil
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

from gpt2_hf import GPT2HFForCausalLM

from ..conftest import REPOSITORY, read_json
from ..tiny_models import make_stock

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture
def run_example(tmp_path, monkeypatch, capfd):
    """Run an example as a user would, in a folder of its own, and return what it prints."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capfd.readouterr().out

    return run


def test_each_example_is_listed_with_its_command():
    """The table names every script, with the command that stands in the script's first lines."""
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    commands = dict(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \| .* \| `(.*)` \|$", table, flags=re.MULTILINE))
    assert sorted(commands) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    for script, command in commands.items():
        first_lines = (EXAMPLES / script).read_text(encoding="utf-8").splitlines()[:6]
        assert f"    {command}" in first_lines, script


def test_train_on_text(tmp_path, run_example):
    """A text file becomes a model and a sample."""
    text = tmp_path / "book.txt"
    text.write_text("\n\n".join(f"Paragraph {i} tells of the number {i}." for i in range(30)))
    printed = run_example("train_on_text.py", str(text), "--output_dir", "run", "--max_steps", "4")
    assert "step 4/4: validation loss" in printed and "--- a sample of the model ---" in printed
    assert (tmp_path / "run" / "best_model" / "model.safetensors").is_file()


def test_finetune_gpt2(tmp_path, run_example, tokenizer_folder):
    """Training goes on from stock weights, and the perplexity falls."""
    make_stock(vocab_size=384, n_positions=128, bos_token_id=0, eos_token_id=0).save_pretrained(tmp_path / "gpt2")
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, tmp_path / "gpt2")
    text = tmp_path / "book.txt"
    text.write_text("\n\n".join(f"Paragraph {i} tells of the number {i}." for i in range(100)))
    printed = run_example("finetune_gpt2.py", str(text), "--model_name_or_path", "./gpt2", "--output_dir", "run")
    before, after = map(float, re.search(r"perplexity: ([\d.]+) before, ([\d.]+) after", printed).groups())
    assert after < before


def test_resume_after_kill(tmp_path, run_example):
    """A run is really killed, and the next goes on from its checkpoint to the end."""
    printed = run_example("resume_after_kill.py", "--output_dir", "run", "--max_steps", "20")
    assert "resuming from run/checkpoint-10" in printed
    state = read_json(tmp_path / "run" / "trainer_state.json")
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [5, 10, 15, 20]


def test_compare_runs(tmp_path, run_example):
    """Two runs end up in one picture."""
    run_example("compare_runs.py", "--output_dir", "runs", "--max_steps", "10")
    assert (tmp_path / "runs" / "comparison.png").stat().st_size > 10_000
    rates = [read_json(path / "resolved_config.json")["learning_rate"] for path in (tmp_path / "runs").glob("lr_*")]
    assert sorted(rates) == [3e-4, 3e-3]


def test_custom_callback(tmp_path, run_example):
    """The callback ends the training at the first evaluation that is good enough, with a checkpoint."""
    printed = run_example("custom_callback.py", "--stop_below", "10.6")
    assert "is below 10.6, enough\nstopped at step 5;" in printed
    assert (tmp_path / "runs" / "callback" / "checkpoint-5").is_dir()


def test_use_model(run_example, finished_run):
    """Ten lines of Python continue a prompt."""
    assert run_example("use_model.py", str(finished_run / "best_model"), "A list").startswith("A list")


def test_evaluate_checkpoint(run_example, finished_run, corpus_folder):
    """What the example measures is what the run measured."""
    options = [str(finished_run / "best_model"), "--test_file", str(corpus_folder / "test.txt")]
    printed = dict(line.split() for line in run_example("evaluate_checkpoint.py", *options).splitlines())
    assert float(printed["loss"]) == pytest.approx(
        read_json(finished_run / "test_results.json")["test_loss"], abs=1e-4
    )
    assert float(printed["bits_per_byte"]) > 0


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
    losses = [float(loss) for loss in re.findall(r": loss ([\d.]+)", printed)]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert "merged it is a GPT2HFForCausalLM" in printed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_chat_sft(tmp_path, run_example):
    """The chat example trains on the answers, saves its template, and answers in a conversation."""
    pytest.importorskip("trl", reason="the chat example needs trl, which gpt2_hf does not depend on")
    printed = run_example("chat_sft.py", "--output_dir", "chat", "--max_steps", "10", "--question", "Greet Ada.")
    losses = [float(line.split("'loss': '")[1].split("'")[0]) for line in printed.splitlines() if "'loss'" in line]
    assert len(losses) == 5 and losses[-1] < losses[0]
    assert "user: Greet Ada.\nassistant: " in printed
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    conversation = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    assert tokenizer.apply_chat_template(conversation, tokenize=False) == "<|user|>A<|assistant|>B<|endoftext|>"
    assert tokenizer.tokenize("<|user|>") == ["<|user|>"]


def test_own_dataset(tmp_path, run_example):
    """A dataset with its text column is trained on and scored split by split; the best model loads."""
    printed = run_example("own_dataset.py", "--output_dir", "run", "--max_steps", "4")
    assert "validation loss of squares" in printed and "perplexity of squares" in printed
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "best_model")) is GPT2HFForCausalLM
