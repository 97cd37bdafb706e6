"""Several processes train the same thing as one (gloo, on CPU)."""

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.torch_version import TorchVersion
from transformers import TrainingArguments

from gpt2_hf import DataArguments, ModelArguments, train
from gpt2_hf.__main__ import _take_option, main
from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.checkpoints.sharding import check_engine
from gpt2_hf.checkpoints.state_files import load_state
from gpt2_hf.errors import UserError
from gpt2_hf.job import results
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.trainer.callbacks import NonFiniteGuard

from .. import ranks
from ..conftest import REPOSITORY, needs_bf16, needs_fork_server, read_json
from ..faults import harness
from ..runs import history

pytestmark = [
    pytest.mark.distributed,
    needs_fork_server,
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
    assert_same_weights(*(folders.resolve(_LAST, folder) for folder in (one, other)), atol=atol)


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
    options = [*tiny_options, *_SAME_RUN, "--sequence_mode", mode, "--batch_size", str(share), "--verbose"]
    text = ranks.run(processes, ["train", *options, "--checkpoint_dir", str(tmp_path)], tmp_path / "log")
    assert f"8 samples per step = {processes} processes × {share} samples × {accumulated} accumulated" in text
    assert text.count("best model: step") == text.count("parameters (") == 1
    assert_same_run(one_process(mode), tmp_path)


def train_from_python(options):
    """As the first of several runs of a script."""
    typed, config = _take_option(options, "--config")
    assert train(*parse((ModelArguments, DataArguments, GPT2HFTrainingArguments), typed, config).values) == 0
    assert dist.is_initialized(), "the other processes can still be asked"


def test_several_runs_in_one_script(tiny_options, tmp_path):
    """`train` leaves the processes together: the next run, or whatever the script does, needs them."""
    options = [*tiny_options, "--batch_size", "4", "--max_steps", "2"]
    first = functools.partial(train_from_python, [*options, "--checkpoint_dir", str(tmp_path / "first")])
    ranks.run(2, ["train", *options, "--checkpoint_dir", str(tmp_path / "second")], tmp_path / "log", prepare=first)
    assert_same_weights(*(folders.resolve("latest", tmp_path / name) for name in ("first", "second")), atol=0)


def as_on_a_gpu():
    """Let a process shard, and leave it to the optimizer to pass over a gradient that is not finite."""
    ranks.allow_fsdp_on_cpu()
    NonFiniteGuard.__init__ = functools.partialmethod(NonFiniteGuard.__init__, deferred=True)


@pytest.fixture(scope="module")
def sharded(tiny_options, tmp_path_factory):
    """The run of `one_process("padding_free")`, sharded over two processes; activations recomputed."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    folder.mkdir()
    options = [*tiny_options, *_SAME_RUN, "--batch_size", "2", "--fsdp", "--activation_checkpointing"]
    ranks.run(2, ["train", *options, "--checkpoint_dir", str(folder)], folder / "log", prepare=as_on_a_gpu)
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


def test_tied_unused_tokens_train_the_same_thing(tiny_options, tmp_path):
    """The compact head on two shards: the run of one process."""
    folders = tmp_path / "one", tmp_path / "sharded"
    for processes, folder in enumerate(folders, start=1):
        options = [*tiny_options, *_SAME_RUN, "--tie_unused_tokens", *(["--fsdp"] if processes == 2 else [])]
        ranks.run(processes, ["train", *options, "--checkpoint_dir", str(folder)], tmp_path / "log", fsdp=True)
    assert_same_run(*folders)


def test_a_sharded_checkpoint_is_that_of_one_process(one_process, sharded):
    """The same files with the same names and shapes, no pickle among them."""
    one, other = (folders.resolve(_LAST, folder) for folder in (one_process("padding_free"), sharded))
    assert manifest.damage(other) is None
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
    assert_same_weights(folders.resolve(_LAST, sharded), folders.resolve(_LAST, again), atol=0)


def test_a_finished_sharded_run_is_scored_again(sharded, tiny_options, tmp_path):
    """There is nothing to train, and the model is divided all the same: the same score."""
    again = tmp_path / "again"
    shutil.copytree(sharded, again)
    (again / "test_results.json").unlink()
    options = [*tiny_options, *_SAME_RUN, "--batch_size", "2", "--fsdp", "--activation_checkpointing"]
    options += ["--checkpoint_dir", str(again), "--resume_from", "latest"]
    assert "nothing is left to train" in ranks.run(2, ["train", *options], tmp_path / "log", prepare=as_on_a_gpu)
    scores = [read_json(folder / "test_results.json")["test_loss"] for folder in (again, sharded)]
    assert scores[0] == scores[1]


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


@needs_bf16
def test_a_sharded_run_in_bf16_sums_and_reports_in_fp32(tiny_options, tmp_path):
    """bf16 for the products only: losses keep their digits, and gradients of two shards those of one process."""
    losses = []
    for processes, options in ((1, []), (2, ["--fsdp"])):
        folder = tmp_path / str(processes)
        options = [*tiny_options, *_SAME_RUN, "--precision", "bf16", "--max_steps", "4", *options]
        ranks.run(processes, ["train", *options, "--checkpoint_dir", str(folder)], tmp_path / "log", fsdp=True)
        log = read_json(folder / "trainer_state.json")["log_history"]
        losses.append([entry[key] for entry in log for key in ("loss", "eval_loss") if key in entry])
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    rounded = torch.tensor(losses[1]).bfloat16().float()
    assert not torch.equal(rounded, torch.tensor(losses[1]))


def engine(**settings):
    """An accelerator with FSDP as it is supported, but for these settings."""
    supported = {
        "fsdp_version": 2,
        "state_dict_type": "StateDictType.FULL_STATE_DICT",
        "activation_checkpointing": False,
        "cpu_offload": None,
    }
    plugin = SimpleNamespace(**{**supported, **settings})
    return SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("fsdp_version", 1, "FSDP version 1"),
        ("state_dict_type", "StateDictType.SHARDED_STATE_DICT", "sharded checkpoints are archives with pickles"),
        ("activation_checkpointing", True, "use --activation_checkpointing"),
        ("cpu_offload", CPUOffloadPolicy(), "fsdp_offload_params: false"),
    ],
)
def test_what_would_be_unsafe_or_inexact_is_refused(setting, value, message):
    """Settings of accelerate's config file are refused with the setting to change."""
    with pytest.raises(UserError, match=message):
        check_engine(engine(**{setting: value}), wanted=True)


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu130"])
def test_an_older_torch_is_refused_for_fsdp(version, monkeypatch):
    """It loses track of a group with a head that is never called, as soon as a step follows an evaluation."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    with pytest.raises(UserError, match=rf"FSDP needs torch 2\.13 or newer here, this is {re.escape(version)}"):
        check_engine(engine(), wanted=True)


@pytest.mark.parametrize("version", ["2.13.0a0+nv26.7", "2.13.0+cpu", "2.14.0"])
def test_a_newer_torch_is_not_refused_for_fsdp(version, monkeypatch):
    """Neither are the builds that vendors make before a release."""
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    check_engine(engine(), wanted=True)


def test_fsdp_without_accelerators_is_refused(tiny_options, tmp_path):
    """accelerate would turn FSDP off on CPUs without a word: two processes, one line."""
    options = ["train", *tiny_options, "--fsdp", "--checkpoint_dir", str(tmp_path / "run")]
    codes, text = ranks.end(2, options, tmp_path / "log")
    assert codes == [2, 2]
    assert text.count("error: FSDP needs accelerators") == 1 and "Traceback" not in text


def test_deepspeed_is_refused(train_tiny, tmp_path, capsys):
    """Its checkpoints are pickles."""
    assert train_tiny(tmp_path / "run", "--deepspeed", "zero3.json") == 2
    assert "--deepspeed is not supported" in capsys.readouterr().err


def test_a_stream_goes_on_exactly_on_two_processes(tiny_options, tmp_path):
    """Streamed text divided among two processes: resumed half-way, the history is that of the run left alone."""
    options = [*tiny_options, "--streaming", "--max_train_samples", "none", "--shuffle_buffer_size", "40"]
    options = ["train", *options, "--max_steps", "12", "--save_every", "6"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ranks.run(2, [*options, "--checkpoint_dir", str(whole)], tmp_path / "log")
    shutil.copytree(whole, parts)
    resume = [*options, "--checkpoint_dir", str(parts), "--resume_from", "checkpoint_step_6"]
    ranks.run(2, resume, tmp_path / "log")
    assert history(parts) == history(whole)
    codes, text = ranks.end(1, [*resume, "--global_batch_size", "16"], tmp_path / "log1")
    assert codes == [2] and "the stream was divided among 2 processes" in text


# ---- launchers and ranks ----


def test_accelerate_launch_trains_the_same_thing(tiny_options, one_process, tmp_path, popen):
    """`accelerate launch` with a config of examples/accelerate."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(REPOSITORY / "examples/accelerate/ddp.yaml")]
    options = [*tiny_options, *_SAME_RUN, "--sequence_mode", "blocks", "--checkpoint_dir", str(tmp_path / "run")]
    process = popen([sys.executable, *launcher, str(REPOSITORY / "run_clm.py"), *options], stdout=subprocess.PIPE)
    assert b"2 processes" in process.communicate(timeout=240)[0]
    assert_same_run(one_process("blocks"), tmp_path / "run")


def test_the_precision_is_the_one_printed(monkeypatch, tmp_path):
    """accelerate's config file has a setting of that kind too, which would win without a word."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    args = GPT2HFTrainingArguments(output_dir=str(tmp_path), precision="fp32", use_cpu=True)
    assert args.mixed_precision == "no" and args.resolved_precision.name == "fp32"


def test_one_process_uses_one_gpu(monkeypatch, tmp_path):
    """torch's DataParallel would give the second device nothing of a row without padding."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", 8)
    args = GPT2HFTrainingArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=4)
    assert args._n_gpu == 1 and args.train_batch_size == 4


def test_accelerate_understands_the_settings_for_fsdp(monkeypatch):
    """fsdp2.yaml: each is an option of `accelerate launch`, and what it makes of them is allowed here."""
    config = load_config_from_file(str(REPOSITORY / "examples/accelerate/fsdp2.yaml"))
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config.keys() <= vars(launch_command_parser().parse_args(["run_clm.py"])).keys()
    for name, value in config.fsdp_config.items():
        monkeypatch.setenv(name.upper(), str(value))  # as the launcher hands them on
    plugin = FullyShardedDataParallelPlugin()
    check_engine(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="no"), wanted=True)


def test_a_process_that_dies_takes_the_run_with_it(tiny_options, tmp_path):
    """kill -9 on one of two: the other says so and ends within seconds, and what was saved is whole."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    options = ["--max_steps", "100000", "--max_epochs", "100000", "--eval_every", "100000"]
    argv = ["train", *tiny_options, *options, "--checkpoint_dir", str(tmp_path / "run")]
    first, second = harness.start_ranks(argv, logs)
    harness.wait_for(logs[0], "step 20/")
    second.kill()
    killed = time.monotonic()
    assert harness.join([first]) == [1], logs[0].read_text()
    assert time.monotonic() - killed < 25  # a second, if the machine has nothing else to do
    assert "error: another process of the run is gone" in logs[0].read_text()
    newest, passed_over = folders.newest_valid(tmp_path / "run")
    assert newest is not None and not passed_over


def slow_report(seconds):
    """The first process takes its time, and the second looks at nothing."""
    if os.environ["RANK"] == "1":
        results.saved_model = None  # another host may see the folder as it was
    write = results.write_report

    def slowly(*given):
        print("the report begins")
        time.sleep(seconds)
        return write(*given)

    results.write_report = slowly


def test_who_reports_alone_is_waited_for(tiny_options, tmp_path):
    """--ddp_timeout is for training: an upload, or a report on a slow disk, may take longer."""
    options = ["--max_steps", "2", "--ddp_timeout", "5", "--checkpoint_dir", str(tmp_path / "run")]
    text = ranks.run(
        2, ["train", *tiny_options, *options], tmp_path / "log", prepare=functools.partial(slow_report, 6)
    )
    assert "results: " in text


def test_who_waits_for_a_report_learns_of_a_death(tiny_options, tmp_path):
    """kill -9 on the process that writes it: the other ends within seconds, however patient it is."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    argv = ["train", *tiny_options, "--max_steps", "2", "--checkpoint_dir", str(tmp_path / "run")]
    first, second = harness.start_ranks(argv, logs, functools.partial(slow_report, 60))
    harness.wait_for(logs[0], "the report begins")
    first.kill()
    killed = time.monotonic()
    assert harness.join([second]) == [1], logs[1].read_text()
    assert time.monotonic() - killed < 25
    assert "another process of the run is gone" in logs[1].read_text()


# ---- what a process draws and sees ----


def go_to_own_folder(parent):
    """What a relative path leads to differs between the processes, as between two hosts."""
    os.chdir(Path(parent) / os.environ["RANK"])


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_another_text_on_another_host_is_refused(tiny_options, finished_run, tmp_path, command):
    """Both processes end before the first step, and one line says which text it is."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "own.txt").write_text(f"Process {rank} reads this text.\n" * 40)
    if command == "train":
        options = [*tiny_options, "--train_file", "own.txt", "--checkpoint_dir", str(tmp_path / "run")]
    else:
        options = ["--model_path", str(finished_run / "best_model"), "--test_file", "own.txt"]
    prepare = functools.partial(go_to_own_folder, str(tmp_path))
    codes, text = ranks.end(2, [command, *options], tmp_path / "log", prepare=prepare)
    assert codes == [2, 2], text
    split = "train" if command == "train" else "test"
    assert f"error: the {split} text, or its tokenizer, is not the same on every host" in text
    assert "Traceback" not in text and not (tmp_path / "run").exists()


def test_a_text_that_one_host_lacks_ends_both(tiny_options, tmp_path):
    """The process that misses it says so; the other one does not wait for it."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "0" / "own.txt").write_text("Process 0 has this text.\n" * 40)
    options = ["train", *tiny_options, "--train_file", "own.txt", "--checkpoint_dir", str(tmp_path / "run")]
    prepare = functools.partial(go_to_own_folder, str(tmp_path))
    codes, text = ranks.end(2, options, tmp_path / "log", prepare=prepare)
    assert codes == [1, 2], text
    assert "error (process 1): --train_file: no file matches 'own.txt'" in text and "Traceback" not in text


def test_every_process_draws_its_own_dropout(sharded):
    """Or the same positions of all samples would be dropped together."""
    folder = folders.resolve(_LAST, sharded)
    states = [load_state(folder / f"process_state_{rank}.safetensors")["rng"]["cpu"] for rank in (0, 1)]
    assert not torch.equal(*states)
