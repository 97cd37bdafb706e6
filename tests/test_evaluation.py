"""Scoring a model: exact whatever the batches, and by the protocol that was asked for."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gpt2_hf.__main__ import main
from gpt2_hf.evaluation import SlidingWindows, _collate_windows, evaluate_model
from gpt2_hf.model_loading import load_trained

from .conftest import read_json


@given(num_tokens=st.integers(2, 60), max_length=st.integers(2, 20), data=st.data())
@settings(deadline=None)
def test_sliding_windows_score_each_token_at_most_once(num_tokens, max_length, data):
    """With stride < context every token but the first is scored once; with stride = context, window starts are not."""
    stride = data.draw(st.integers(1, max_length))
    stream = np.arange(num_tokens) + 100
    scored = []
    for window in SlidingWindows(stream, max_length, stride):
        targets = window["shift_labels"]
        scored += targets[targets >= 0].tolist()
        assert len(window["input_ids"]) <= max_length
    expected = [token for i, token in enumerate(stream) if i and not (stride == max_length and i % max_length == 0)]
    assert sorted(scored) == expected


def test_sliding_windows_are_those_of_the_perplexity_guide(finished_run):
    """The loop of transformers' documentation, with stock label shifting, gives the same sum."""
    model, tokenizer, _ = load_trained(str(finished_run / "best_model"))
    ids = tokenizer("The statement is a simple statement. " * 12, return_tensors="pt").input_ids
    max_length, stride = 16, 8
    total, tokens, previous_end = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + max_length, ids.shape[1])
        window, targets = ids[:, begin:end], ids[:, begin:end].clone()
        targets[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            logits = model(window).logits
        labels = targets[0, 1:]
        total += cross_entropy(logits[0, :-1], labels, ignore_index=-100, reduction="sum").item()
        tokens += int((labels != -100).sum())
        previous_end = end
        if end == ids.shape[1]:
            break
    result = evaluate_model(model, SlidingWindows(ids[0].numpy(), max_length, stride), _collate_windows, batch_size=3)
    assert result["tokens"] == tokens
    assert result["loss"] == pytest.approx(total / tokens, abs=1e-6)


@pytest.mark.parametrize("batch_size", ["1", "3", "8"])
def test_command_repeats_the_training_protocol(finished_run, tmp_path, capsys, batch_size):
    """Without further options `evaluate` measures what the run measured, to 1e-6, and prints it as JSON."""
    output_file = tmp_path / "result.json"
    model = str(finished_run / "best_model")
    options = ["--model_path", model, "--batch_size", batch_size, "--output_file", str(output_file)]
    assert main(["evaluate", *options]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == read_json(output_file)
    expected = read_json(finished_run / "test_results.json")
    assert printed["loss"] == pytest.approx(expected["test_loss"], abs=1e-6)
    assert printed["perplexity"] == pytest.approx(math.exp(printed["loss"]))
    assert (printed["tokens"], printed["protocol"]) == (expected["test_tokens"], "padding_free")


def test_command_scores_another_text_with_sliding_windows(finished_run, tmp_path, capsys):
    """Another file, split and stride; the output says what was measured."""
    text = tmp_path / "other.txt"
    text.write_text("The assert statement is a convenient way to insert assertions.\n" * 5)
    options = ["--model_path", str(finished_run / "checkpoint-25"), "--test_file", str(text), "--stride", "16"]
    assert main(["evaluate", *options]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (printed["protocol"], printed["context"], printed["stride"]) == ("sliding windows", 32, 16)


def test_command_finds_checkpoints_by_name(finished_run, capsys):
    """A checkpoint's name behind the run's path is a model path too."""
    assert main(["evaluate", "--model_path", str(finished_run / "checkpoint_epoch_1"), "--split", "validation"]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["loss"] == pytest.approx(read_json(finished_run / "eval_results.json")["eval_loss"], abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model_path", "./nowhere"], "--model_path: there is no checkpoint './nowhere'"),
        (["--stride", "0"], "--stride must be at least 1"),
        (["--stride", "64"], "--stride 64 exceeds --max_length 32"),
        (["--max_length", "64"], "--max_length 64 exceeds the model's 32 positions"),
        (["--spilt", "test"], "unknown option --spilt; did you mean split"),
    ],
)
def test_bad_input_is_one_line(finished_run, capsys, options, message):
    """Exit code 2, and a line that names the option."""
    base = [] if "--model_path" in options else ["--model_path", str(finished_run / "best_model")]
    assert main(["evaluate", *base, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
