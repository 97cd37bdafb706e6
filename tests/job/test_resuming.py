"""What a run goes on from: chosen by one process, seen by all, and compared by what the options do."""

import functools
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from gpt2_hf import train
from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import folders
from gpt2_hf.checkpoints.run_lock import RunLock
from gpt2_hf.data.tokenizer import load_tokenizer
from gpt2_hf.errors import UserError
from gpt2_hf.job import resuming
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime import distributed

from ..conftest import read_json
from ..faults import harness


def test_a_default_that_is_stated_is_no_change(train_tiny, finished_run, tmp_path, capsys):
    """Sizes and settings that follow from others when they are left out, given as what they are."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    stated = ("--d_ff", "128", "--num_heads", "2", "--data_seed", "42", "--attn_implementation", "sdpa")
    assert train_tiny(run, "--resume_from", "latest", *stated) == 0
    assert "changed since the checkpoint" not in capsys.readouterr().out


def test_more_samples_than_there_are_is_all_of_them(train_tiny, tmp_path, capsys):
    """A limit that left nothing out can be left out."""
    for options in (("--max_train_samples", "100000"), ("--max_train_samples", "none", "--resume_from", "latest")):
        assert train_tiny(tmp_path / "run", "--max_steps", "2", *options) == 0
    assert "changed since the checkpoint" not in capsys.readouterr().out


@pytest.mark.parametrize("copied", [False, True])
def test_a_moved_run_is_not_begun_again_in_its_old_folder(train_tiny, tmp_path, monkeypatch, capsys, copied):
    """Its config states where it was, where the command that is advertised would start fresh, or go on."""
    old, new = tmp_path / "old", tmp_path / "new"
    assert train_tiny(old, "--max_steps", "2", "--save_strategy", "epoch") == 0
    if copied:
        shutil.copytree(old, new)
    else:
        old.rename(new)
    again = ["train", "--config", str(new / "resolved_config.json"), "--resume_from", "latest", "--max_steps", "3"]
    assert main(again) == 2
    assert f"add --checkpoint_dir {new}\n" in capsys.readouterr().err
    assert old.exists() == copied and not (old / "checkpoint-3").exists()
    assert main([*again, "--checkpoint_dir", str(new), "--use_cpu"]) == 0
    assert (new / "checkpoint-3").is_dir() and old.exists() == copied
    monkeypatch.chdir(new)
    assert main(["train", "--config", "resolved_config.json", "--resume_from", "latest", "--use_cpu"]) == 0


def test_options_are_compared_by_their_effect():
    """Either way round: what is left out is what it follows from."""
    run = SimpleNamespace(
        model_args=ModelArguments(d_model=128), data_args=DataArguments(), args=GPT2HFTrainingArguments(use_cpu=True)
    )
    stated = {"d_model": 128, "num_heads": 2, "d_ff": 512, "eval_steps": 100.0, "logging_steps": 100.0, "seed": 3}
    left_out = {"d_model": 128, "eval_steps": None, "logging_steps": 100.0, "seed": 3}
    assert resuming.changed_options(run, stated, left_out) == {}
    assert resuming.changed_options(run, left_out, {**stated, "data_seed": 3}) == {}
    assert resuming.changed_options(run, {**left_out, "data_seed": 4}, left_out) == {"data_seed": (4, 3)}
    rates = {"learning_rate": 1e-3, "weight_decay": 0.1, "muon_learning_rate": None, "muon_weight_decay": None}
    adamw = {"optim": "adamw_torch_fused", **rates}
    changed = {"learning_rate": (1e-3, 1e-4), "weight_decay": (0.1, 0.2)}
    lower = {name: becomes for name, (_, becomes) in changed.items()}
    assert resuming.changed_options(run, adamw, {**adamw, **lower}) == changed  # and none of Muon's
    muon = {**adamw, "optim": "muon"}
    assert "muon_learning_rate" in resuming.changed_options(run, muon, {**muon, **lower})
    scored = {"metric_for_best_model": "loss", "greater_is_better": False}
    unscored = {"metric_for_best_model": None, "greater_is_better": None}
    assert list(resuming.changed_options(run, scored, unscored)) == ["metric_for_best_model"]
    for saved, current, size, expected in (
        (None, 500, 200, False),
        (500, None, 200, False),
        (200, 50, 50, True),
        (50, None, 200, True),
        (None, 50, 50, True),
        (300, 400, 200, False),
    ):
        found = resuming.changed_options(
            run, {**left_out, "max_train_samples": saved}, {**left_out, "max_train_samples": current}, size
        )
        assert bool(found) == expected, (saved, current)


def test_another_separator_is_refused(train_tiny, tokenizer_folder, tmp_path, capsys):
    """The ids of the text do not show it: it is put between the documents of `blocks` as they are read."""
    folder, run = str(tmp_path / "tokenizer"), tmp_path / "run"
    tokenizer = load_tokenizer(str(tokenizer_folder))
    tokenizer.add_tokens(["<|other|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    options = ["--sequence_mode", "blocks", "--tokenizer_name", folder]
    assert train_tiny(run, *options, "--max_steps", "2") == 0
    tokenizer.eos_token = "<|other|>"
    tokenizer.save_pretrained(folder)
    capsys.readouterr()
    assert train_tiny(run, *options, "--max_steps", "4", "--resume_from", "latest") == 2
    was = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert f"between documents had the id {was} and now has {tokenizer.eos_token_id}; " in capsys.readouterr().err


def test_another_number_of_threads_is_said(finished_run, train_tiny, tmp_path, capsys):
    """It adds in another order; so do another device, precision or torch."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    torch.set_num_threads(2)
    try:
        assert train_tiny(run, "--resume_from", "latest", "--max_steps", "26") == 0
    finally:
        torch.set_num_threads(1)
    assert "changed since the checkpoint: threads 1 → 2; sums run in another order" in capsys.readouterr().out
    assert read_json(run / "resolved_config.json")["provenance"]["threads"] == 2


def test_a_run_from_python_goes_on_with_what_was_set(corpus_folder, tokenizer_folder, tmp_path, capsys):
    """Also with options that are transformers' own: they are written down, and compared when it is resumed."""
    files = {f"{split}_file": str(corpus_folder / f"{split}.txt") for split in ("train", "validation")}
    model_args = ModelArguments(d_model=16, num_layers=1, num_heads=1, max_length=16)
    data_args = DataArguments(**files, tokenizer_name=str(tokenizer_folder))
    stated = {
        **{"data_seed": 7, "label_smoothing_factor": 0.1, "train_sampling_strategy": "group_by_length"},
        **{"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
        **{"logging_strategy": "epoch", "max_steps": 4},
    }
    run = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "precision": "fp32", "do_predict": False}
    assert train(model_args, data_args, GPT2HFTrainingArguments(**stated, **run)) == 0
    record = tmp_path / "run" / "resolved_config.json"
    assert {name: read_json(record)[name] for name in stated} == stated
    other = {**stated, "data_seed": 8, "resume_from_checkpoint": "latest"}
    with pytest.raises(UserError, match="--data_seed was 7 and cannot become 8"):
        train(model_args, data_args, GPT2HFTrainingArguments(**other, **run))
    capsys.readouterr()
    words = ["--config", str(record), "--resume_from", "latest", "--max_steps", "5"]
    assert main(["train", *words]) == 0
    assert "changed since the checkpoint: max_steps 4 → 5\n" in capsys.readouterr().out


# ---- several processes ----


def hide_from_second_process():
    """A folder of its own under the same name, as on a host without the shared disk: nothing is in it."""
    if os.environ["RANK"] == "1":
        seen = folders.Path.is_file
        folders.Path.is_file = lambda self: "checkpoint-10" not in str(self) and self.name != "run.lock" and seen(self)
        resuming._SECONDS_TO_APPEAR = 0.2


@pytest.mark.parametrize("options", [("--resume_from", "checkpoint_step_10", "--max_epochs", "2"), ("--fresh",)])
def test_a_folder_that_is_not_shared_is_refused_by_all(tiny_options, finished_run, tmp_path, options):
    """A process that does not see what the first one sees: all say so, and nothing is changed."""
    run, logs = tmp_path / "run", [tmp_path / "log0", tmp_path / "log1"]
    fresh = options == ("--fresh",)
    if not fresh:
        shutil.copytree(finished_run, run)
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    command = ["train", *tiny_options, "--batch_size", "4", "--ddp_backend", "gloo", "--checkpoint_dir", str(run)]
    processes = harness.start_ranks([*command, *(() if fresh else options)], logs, hide_from_second_process)
    assert harness.join(processes) == [2, 2], logs[0].read_text() + logs[1].read_text()
    assert all("the folder must be shared by all hosts" in log.read_text() for log in logs)
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def remember_what_is_not_there():
    """As NFS does for up to a minute: what the second process did not find, it goes on not to find."""
    if os.environ["RANK"] == "1":
        missed = set()

        def look(path, seen):
            there = not missed & {path, *path.parents} and seen(path)
            if not there and "new" in path.parts:
                missed.add(path)
            return there

        for name in ("exists", "is_dir", "is_file"):
            setattr(folders.Path, name, functools.partialmethod(look, getattr(folders.Path, name)))
        resuming._SECONDS_TO_APPEAR = 0.2


def test_a_new_folder_is_not_looked_for_before_it_is_there(tiny_options, tmp_path):
    """Another host would go on not to see it, and refuse a shared folder."""
    logs = [tmp_path / "log0", tmp_path / "log1"]
    command = ["train", *tiny_options, "--max_steps", "1", "--checkpoint_dir", str(tmp_path / "new" / "run")]
    processes = harness.start_ranks(command, logs, remember_what_is_not_there)
    assert harness.join(processes) == [0, 0], logs[0].read_text() + logs[1].read_text()


def test_the_first_process_decides_for_all(monkeypatch):
    """Its answer and its error are those of every process; the others are not asked."""
    sent, ranks = [], []

    def broadcast(outcome, src, group):
        if ranks == [0]:
            sent.append(list(outcome))
        else:
            outcome[:] = sent.pop()

    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_cpu_group", lambda world: None)
    group = SimpleNamespace(WORLD=None)
    monkeypatch.setattr(
        distributed, "dist", SimpleNamespace(get_rank=lambda: ranks[0], broadcast_object_list=broadcast, group=group)
    )

    def refuse():
        raise UserError("no")

    for number, decide in ((0, lambda: 7), (1, refuse)):
        ranks[:] = [number]
        assert distributed.decided_by_first(decide) == 7
    for number, decide in ((0, refuse), (1, lambda: 7)):
        ranks[:] = [number]
        with pytest.raises(UserError, match="no"):
            distributed.decided_by_first(decide)


# ---- a folder that another process has taken ----


@pytest.mark.parametrize("last", [10, 25])
def test_a_run_that_has_lost_its_folder_saves_nothing_more(train_tiny, tmp_path, capsys, monkeypatch, last):
    """Lost after a checkpoint: it stops at the next step, or before its results, with one line; the rest is whole."""
    run = tmp_path / "run"
    lost = property(lambda lock: (run / folders.checkpoint_folder(last) / "manifest.json").exists())
    monkeypatch.setattr(RunLock, "lost", lost)
    assert train_tiny(run) == 2
    err = capsys.readouterr().err
    assert "another process has taken" in err and err.count("\n") == 1
    assert folders.list_checkpoints(run)[-1].name == folders.checkpoint_folder(last)
    assert folders.newest_valid(run)[1] == []
    assert not (run / "trainer_state.json").exists() and not (run / "README.md").exists()
