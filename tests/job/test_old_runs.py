"""Runs of earlier versions are resumed and their models loaded: nothing a user has on the disk is lost by an update.

`fixtures/run_of_dc2dd75.zip` was made with commit dc2dd75, OMP_NUM_THREADS=1, torch 2.13.0 on a Zen 5:
    python run_clm.py --d_model 16 --num_layers 2 --num_heads 2 --max_length 24 --train_file train.txt
    --validation_file validation.txt --tokenizer_name ./tokenizer --precision fp32 --use_cpu --learning_rate 3e-3
    --max_steps 8 --warmup_steps 2 --logging_steps 1 --eval_every 2 --save_every 4 --batch_size 4
    --checkpoint_dir run --sample_tokens 8 --save_total_limit none
Its checkpoints of steps 2 and 6, event files and pictures are left out. That its model loads where this package is
not installed is tested with other such models (tests/commands/test_model_loading.py).
"""

import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt2_hf.__main__ import main

from ..conftest import read_json


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The folder of the run, in a working folder that also has its text and its tokenizer."""
    zipfile.ZipFile(Path(__file__).parent / "fixtures" / "run_of_dc2dd75.zip").extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_an_old_run_is_resumed(old_run):
    """From its checkpoint of step 4 and its own config, it ends in the weights and the history it had, to rounding."""
    options = ["--config", "run/checkpoint-4/resolved_config.json", "--resume_from", "checkpoint-4"]
    assert main(["train", *options]) == 0
    ends = [old_run / "abandoned-checkpoint-8", old_run / "checkpoint-8"]
    before, after = (load_file(folder / "model.safetensors") for folder in ends)
    assert before.keys() == after.keys()
    # attention has taken powers of 2 in place of e since; another processor or torch adds up in another order, too
    tolerance = 1e-6
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=tolerance)
    histories = [
        [
            (entry["step"], entry[key])
            for entry in read_json(folder / "trainer_state.json")["log_history"]
            for key in ("loss", "eval_loss", "learning_rate")
            if key in entry
        ]
        for folder in ends
    ]
    assert histories[0] == [(step, pytest.approx(value, abs=tolerance)) for step, value in histories[1]]


def test_an_old_model_is_evaluated(old_run, capsys):
    """By its name, with the protocol it was trained with."""
    assert main(["evaluate", "--model_path", "run/best_model", "--split", "validation"]) == 0
    assert f"{read_json(old_run / 'eval_results.json')['eval_loss']:.4f}" in capsys.readouterr().out
