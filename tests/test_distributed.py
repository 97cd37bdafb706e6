"""Several processes train the same thing as one (gloo, on CPU)."""

import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from gpt2_hf import checkpoints
from gpt2_hf.__main__ import main

from . import ranks
from .conftest import REPOSITORY, read_json
from .test_training import history

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server"),
]

# Two epochs of 43 samples, 8 a step: the last step of an epoch has 3 samples, so that of 4 processes one has none.
_SAME_RUN = ["--max_train_samples", "43", "--max_epochs", "2", "--logging_steps", "2", "--eval_every", "4"]
_SAME_RUN += ["--save_every", "6", "--dropout", "0", "--global_batch_size", "8"]
_LAST = "checkpoint_step_12"


@pytest.fixture(scope="module")
def one_process(tiny_options, tmp_path_factory):
    """What one process makes of the run, for each sequence mode: `one_process(mode)` is its folder."""
    folders = {}

    def run(mode):
        if mode not in folders:
            folders[mode] = tmp_path_factory.mktemp(mode)
            options = [*tiny_options, *_SAME_RUN, "--sequence_mode", mode, "--checkpoint_dir", str(folders[mode])]
            ranks.run(1, ["train", *options], folders[mode] / "log")
        return folders[mode]

    return run


def assert_same_run(one, other, atol=1e-4):
    """The same logged losses, the same exact evaluations, and weights that are equal to rounding."""
    logs = [read_json(folder / "trainer_state.json")["log_history"] for folder in (one, other)]
    for key in ("loss", "eval_loss", "test_loss", "grad_norm"):
        expected, got = ([(entry["step"], entry[key]) for entry in log if key in entry] for log in logs)
        assert [step for step, _ in expected] == [step for step, _ in got], key
        assert [value for _, value in got] == pytest.approx([value for _, value in expected], abs=2e-5), key
    assert_same_weights(*(checkpoints.resolve(_LAST, folder) for folder in (one, other)), atol=atol)


def assert_same_weights(one, other, atol):
    weights = [load_file(folder / "model.safetensors") for folder in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=atol, rtol=0), name


@pytest.mark.parametrize(
    ("processes", "share", "accumulated", "mode"),
    [
        (2, 4, 1, "padded"),
        (2, 2, 2, "padding_free"),
        (2, 1, 4, "blocks"),
        (4, 2, 1, "blocks"),
        (4, 1, 2, "padding_free"),
    ],
)
def test_processes_train_the_same_thing_as_one(
    tiny_options, one_process, tmp_path, processes, share, accumulated, mode
):
    """8 samples a step however they are divided: the same run, the batches printed, and one set of lines."""
    options = [*tiny_options, *_SAME_RUN, "--sequence_mode", mode, "--batch_size", str(share)]
    text = ranks.run(processes, ["train", *options, "--checkpoint_dir", str(tmp_path)], tmp_path / "log")
    assert f"8 samples a step = {processes} processes × {share} samples × {accumulated} accumulated" in text
    assert text.count("best model: step") == text.count("parameters (") == 1
    assert_same_run(one_process(mode), tmp_path)


@pytest.fixture(scope="module")
def sharded(tiny_options, tmp_path_factory):
    """The run of `one_process("padding_free")`, sharded over two processes; activations recomputed."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    folder.mkdir()
    options = [*tiny_options, *_SAME_RUN, "--batch_size", "2", "--fsdp", "--activation_checkpointing"]
    ranks.run(2, ["train", *options, "--checkpoint_dir", str(folder)], folder / "log", fsdp=True)
    return folder


def resumed(whole, folder, tiny_options, processes, *options, fsdp):
    """A copy of a run that goes on from step 6 on so many processes."""
    shutil.copytree(whole, folder)
    options = [*tiny_options, *_SAME_RUN, *options, "--resume_from", "checkpoint_step_6"]
    text = ranks.run(processes, ["train", *options, "--checkpoint_dir", str(folder)], folder / "log2", fsdp=fsdp)
    assert f"{folder.name}/checkpoint-6" in text
    return folder


def test_a_sharded_model_trains_the_same_thing(one_process, sharded):
    """FSDP2: every parameter is divided, and losses, evaluations and weights are those of one process."""
    assert_same_run(one_process("padding_free"), sharded)
    text = (sharded / "log").read_text()
    assert "sharded over 2 processes" in text and text.count("--- a sample of the model ---") == 1


def test_a_sharded_checkpoint_is_that_of_one_process(one_process, sharded):
    """The same files with the same names and shapes, no pickle among them."""
    one, other = (checkpoints.resolve(_LAST, folder) for folder in (one_process("padding_free"), sharded))
    assert checkpoints.damage(other) is None
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert {name for name in names[1] if not name.startswith("process_state")} == {
        name for name in names[0] if not name.startswith("process_state")
    }
    assert read_json(one / "config.json") == read_json(other / "config.json")
    shapes = [
        {name: tensor.shape for name, tensor in load_file(folder / "optimizer.safetensors").items()}
        for folder in (one, other)
    ]
    assert shapes[0] == shapes[1]
    assert_same_weights(one, other, atol=1e-4)


def test_a_sharded_run_goes_on_exactly(sharded, tiny_options, tmp_path):
    """Resumed half-way on as many processes: the same bits."""
    options = ("--batch_size", "2", "--fsdp", "--activation_checkpointing")
    again = resumed(sharded, tmp_path / "again", tiny_options, 2, *options, fsdp=True)
    assert history(again) == history(sharded)
    assert_same_weights(checkpoints.resolve(_LAST, sharded), checkpoints.resolve(_LAST, again), atol=0)


@pytest.mark.parametrize(("processes", "fsdp"), [(1, False), (4, True), (2, False)])
def test_a_sharded_run_goes_on_on_any_number_of_processes(sharded, tiny_options, tmp_path, processes, fsdp):
    """From two shards to one process, to four shards, to two copies: the same run."""
    options = ["--fsdp"] if fsdp else []
    again = resumed(sharded, tmp_path / "again", tiny_options, processes, *options, fsdp=fsdp)
    assert_same_run(sharded, again)


def test_a_run_of_one_process_goes_on_sharded(one_process, tiny_options, tmp_path):
    """And the other way round."""
    whole = one_process("padding_free")
    again = resumed(whole, tmp_path / "again", tiny_options, 2, "--fsdp", fsdp=True)
    assert_same_run(whole, again)


def test_a_sharded_run_exports_to_one_file(sharded, tmp_path):
    """`export` takes the best model of a sharded run like any other."""
    out = tmp_path / "exported"
    assert main(["export", "--model_path", str(sharded / "best_model"), "--output_dir", str(out)]) == 0
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]
