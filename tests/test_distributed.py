"""Several processes train the same thing as one (gloo, on CPU)."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from gpt2_hf import checkpoints

from .conftest import REPOSITORY, read_json
from .test_training import history


def torchrun(processes, *options):
    """Run the main job in several processes on this machine."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"),
            *(str(REPOSITORY / "run_clm.py"), *options),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("mode", ["padding_free", "blocks"])
def test_two_processes_train_the_same_thing_as_one(train_tiny, tiny_options, tmp_path, mode):
    """2 × 4 samples a step: the same losses, exact evaluation, weights to rounding, and one set of log lines."""
    options = ("--sequence_mode", mode, "--max_steps", "12", "--dropout", "0")
    assert train_tiny(tmp_path / "one", *options) == 0
    result = torchrun(
        2,
        *tiny_options,
        *options,
        "--batch_size",
        "4",
        "--checkpoint_dir",
        str(tmp_path / "two"),
        "--ddp_backend",
        "gloo",
    )
    assert result.returncode == 0, result.stderr
    logs = [read_json(tmp_path / name / "trainer_state.json")["log_history"] for name in ("one", "two")]
    for key in ("loss", "eval_loss", "test_loss"):
        one, two = ([entry[key] for entry in log if key in entry] for log in logs)
        assert one == pytest.approx(two, abs=1e-5), key
    weights = [
        load_file(checkpoints.resolve("checkpoint_step_12", tmp_path / name) / "model.safetensors")
        for name in ("one", "two")
    ]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name
    assert result.stdout.count("best model: step") == 1


def test_a_stream_goes_on_exactly_on_two_processes(tiny_options, tmp_path):
    """Streamed text divided among two processes: resumed half-way, the history is that of the run left alone."""
    options = [*tiny_options, "--streaming", "--max_train_samples", "none", "--shuffle_buffer_size", "40"]
    options += ["--max_steps", "12", "--save_every", "6", "--ddp_backend", "gloo"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = torchrun(2, *options, "--checkpoint_dir", str(whole))
    assert result.returncode == 0, result.stderr
    shutil.copytree(whole, parts)
    result = torchrun(2, *options, "--checkpoint_dir", str(parts), "--resume_from", "checkpoint_step_6")
    assert result.returncode == 0, result.stderr
    assert history(parts) == history(whole)
