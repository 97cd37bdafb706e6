"""Checkpoints are complete or absent, found by name, and their damage is noticed."""

import json
import os
import time

import pytest

from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.errors import UserError
from gpt2_hf.runtime.files import sha256

from ..runs import make_checkpoint


def test_committed_checkpoint_is_undamaged(tmp_path):
    """A committed folder has a manifest of all its files and passes the check."""
    folder = make_checkpoint(tmp_path, 10)
    described = json.loads((folder / "manifest.json").read_text())["files"]
    assert set(described) == {"model.safetensors", "config.json", "trainer_state.json"}
    assert manifest.damage(folder) is None
    assert not list(tmp_path.glob("tmp-*"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer_state.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "flipped"])
def test_every_kind_of_damage_is_found(tmp_path, name, kind):
    """A missing, truncated, empty or bit-flipped file is named."""
    folder = make_checkpoint(tmp_path, 10)
    path = folder / name
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "flipped":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.write_bytes(content[: len(content) // 2] if kind == "truncated" else b"")
    assert name in (manifest.damage(folder) or "")


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "pytorch_model.bin", "Optimizer.PT"),
        *("pytorch_model-00001-of-00002.bin", "style/adapter_model.bin", "model.safetensors.index.json"),
    ],
)
def test_a_planted_pickle_is_refused(tmp_path, name):
    """A file that could run code, was not written with the checkpoint and would be read makes it unusable."""
    folder = make_checkpoint(tmp_path, 10)
    (folder / "style").mkdir()
    (folder / "ema.pt").write_bytes(b"a callback's own")
    assert manifest.damage(folder) is None
    (folder / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert f"{name} was put there by somebody else" in (manifest.damage(folder) or "")


def test_newest_valid_passes_over_damage(tmp_path):
    """The newest intact checkpoint is taken; damaged newer ones are named."""
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 10)
    damaged = make_checkpoint(tmp_path, 20)
    (damaged / "config.json").write_text("{ }")
    newest, passed_over = folders.newest_valid(tmp_path)
    assert newest == tmp_path / "checkpoint-10"
    assert len(passed_over) == 1 and "checkpoint-20" in passed_over[0] and "config.json" in passed_over[0]


def test_saving_again_replaces_the_folder(tmp_path):
    """A second save of the same step leaves the new content and nothing else."""
    make_checkpoint(tmp_path, 10, "old")
    folder = make_checkpoint(tmp_path, 10, "new")
    assert (folder / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_repair_restores_what_a_crash_left(tmp_path):
    """A folder that was moved away before its successor came is moved back; staging folders go."""
    folder = make_checkpoint(tmp_path, 10)
    os.replace(folder, tmp_path / "checkpoint-10.replaced")
    (tmp_path / "tmp-checkpoint-20").mkdir()
    folders.repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert manifest.damage(tmp_path / "checkpoint-10") is None


def test_repair_leaves_other_things_alone(tmp_path):
    """Whatever the user keeps in the folder, also under names that look temporary."""
    names = ["tmp-mine", "tmp-notes.txt", "config.json.replaced", "checkpoint.replaced"]
    for name in names:
        (tmp_path / name).write_text("mine")
    for name in ("tmp-checkpoint_names.json", "tmp-resolved_config.json", "tmp-run.lock-host-7"):
        (tmp_path / name).write_text("half")
    (tmp_path / "tmp-best_model").mkdir()
    folders.repair(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_names_resolve_bare_and_as_paths(tmp_path):
    """latest, epoch, step and folder names are found bare and behind the run's path."""
    folder = make_checkpoint(tmp_path, 10)
    folders.add_names(tmp_path, folder.name, ["checkpoint_epoch_1", "best_model"])
    for name in ("latest", "checkpoint_epoch_1", "best_model", "checkpoint_step_10", "checkpoint-10"):
        assert folders.resolve(name, tmp_path) == folder
        assert folders.resolve(str(tmp_path / name), "elsewhere") == folder
    assert folders.resolve(str(folder), "elsewhere") == folder


def test_names_never_dangle(tmp_path):
    """A name whose folder is gone is no longer offered."""
    folder = make_checkpoint(tmp_path, 10)
    folders.add_names(tmp_path, folder.name, ["checkpoint_epoch_1"])
    (folder / "manifest.json").unlink()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert folders.read_names(tmp_path) == {}
    with pytest.raises(UserError, match="holds no checkpoints"):
        folders.resolve("checkpoint_epoch_1", tmp_path)


def test_a_name_does_not_pass_to_another_checkpoint_of_the_step(tmp_path):
    """What gets the place of one that was set aside, or deleted, has the names that it is given."""
    for _ in range(2):
        folders.add_names(tmp_path, make_checkpoint(tmp_path, 10).name, ["best_model"])
    assert folders.read_names(tmp_path) == {"best_model": "checkpoint-10"}  # saved twice, it is the same one
    folders.set_aside_after(tmp_path, 5)
    make_checkpoint(tmp_path, 10)
    assert folders.read_names(tmp_path) == {}


def test_unknown_name_lists_what_there_is(tmp_path):
    """The error for a wrong name names the right ones."""
    make_checkpoint(tmp_path, 10)
    with pytest.raises(UserError, match="checkpoint-10"):
        folders.resolve("checkpoint_epoch_7", tmp_path)


def test_rotation_keeps_recent_and_named(tmp_path):
    """The last few stay, and what a name stands for."""
    for step in (1, 2, 3, 4, 5):
        make_checkpoint(tmp_path, step)
    folders.add_names(tmp_path, "checkpoint-2", ["best_model"])
    folders.rotate(tmp_path, keep_last=2)
    assert [path.name for path in folders.list_checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-4",
        "checkpoint-5",
    ]
    (tmp_path / "checkpoint-4" / "sample.txt").write_text("mine")
    assert folders.rotate(tmp_path, keep_last=1) == [
        (tmp_path / "checkpoint-4", tmp_path / "checkpoint-4" / "sample.txt")
    ]
    for everything in (None, 0, -1):  # the last two by transformers' own arguments
        folders.rotate(tmp_path, keep_last=everything)
        assert len(folders.list_checkpoints(tmp_path)) == 3


def test_rotation_counts_the_checkpoints_of_epochs(tmp_path):
    """Saved every ten steps and after epochs of twelve: the last three are of either kind; those of epochs stay."""
    for step in (10, 12, 20, 24, 30, 36):
        folder = make_checkpoint(tmp_path, step)
        if step % 12 == 0:
            folders.add_names(tmp_path, folder.name, [folders.epoch_name(step // 12)])
        folders.rotate(tmp_path, keep_last=3)
    assert [folders.step_of(path) for path in folders.list_checkpoints(tmp_path)] == [12, 24, 30, 36]


def test_best_model_holds_the_model_only(tmp_path):
    """best_model has weights and config, its own manifest, and none of the Trainer's state."""
    folder = make_checkpoint(tmp_path, 10)
    folders.publish_best_model(folder, tmp_path)
    assert {path.name for path in (tmp_path / "best_model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "manifest.json",
    }
    assert manifest.damage(tmp_path / "best_model") is None
    folders.rotate(tmp_path, keep_last=1)
    assert folders.resolve_model("best_model", tmp_path) == tmp_path / "best_model"


def test_best_model_keeps_the_folders_of_a_checkpoint(tmp_path):
    """An adapter with a name of its own lies in one; what has nothing in it is replaced all the same."""
    name = "style/adapter_model.safetensors"
    for step, further in ((10, []), (20, [name]), (30, [name])):
        folder = make_checkpoint(tmp_path, step, further=further)
        if not further:
            (folder / "config.json").unlink(), (folder / "model.safetensors").unlink()
        folders.publish_best_model(folder, tmp_path)
    assert (tmp_path / "best_model" / name).read_text() == f"{name} of step 30"
    assert manifest.damage(tmp_path / "best_model") is None


def test_best_model_has_all_that_the_run_saved_of_model_and_tokenizer(tmp_path):
    """A vocabulary of any name. No state of the training, no pickle, and nothing that somebody has added."""
    vocabulary = ["spiece.model", "source.spm", "bpe.codes", "vocab.txt"]
    state = ["optimizer.safetensors", "process_state_0.safetensors", "unaveraged_weights.safetensors"]
    folder = make_checkpoint(tmp_path, 10, further=[*vocabulary, *state, "training_args.bin", "head.pt"])
    (folder / "notes.txt").write_text("mine")
    folders.publish_best_model(folder, tmp_path)
    expected = {"config.json", "model.safetensors", "manifest.json", *vocabulary}
    assert {path.name for path in (tmp_path / "best_model").iterdir()} == expected


def test_a_new_best_model_reads_no_weights_again(tmp_path, monkeypatch):
    """To see whether somebody has written over the earlier one: those that were not touched since are as they were."""
    folders.publish_best_model(make_checkpoint(tmp_path, 10), tmp_path)
    later = time.time() + 1  # the weights of a test are written in the same tick of the clock
    os.utime(tmp_path / "best_model" / "manifest.json", (later, later))
    second, read = make_checkpoint(tmp_path, 20), []
    monkeypatch.setattr(manifest, "sha256", lambda path: read.append(path) or sha256(path))
    assert manifest.changed(tmp_path / "best_model") == []
    assert [path.name for path in read] == ["config.json"]
    folders.publish_best_model(second, tmp_path)
    assert not (tmp_path / "best_model.kept").exists()


def test_delete_run_leaves_other_files(tmp_path):
    """Only what a run makes is deleted."""
    make_checkpoint(tmp_path, 10)
    (tmp_path / "my_notes.txt").write_text("mine")
    assert folders.holds_run(tmp_path)
    folders.delete_run(tmp_path)
    assert not folders.holds_run(tmp_path)
    assert (tmp_path / "my_notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ['{"files": {"config.json": {"sizd": 2}}}', '{"files": []}', "[]", "\udcff"])
def test_a_manifest_with_other_content_is_damage(tmp_path, content):
    """Whatever a flipped bit makes of the manifest, it is named and nothing raises."""
    folder = make_checkpoint(tmp_path, 10)
    (folder / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert manifest.damage(folder) == "manifest.json is damaged"


def test_damaged_names_are_no_names(tmp_path):
    """A names file that is no JSON, or no object, leaves the checkpoints to be found by their steps."""
    folder = make_checkpoint(tmp_path, 10)
    for content in (b"\xff", b"[1]", b"{"):
        (tmp_path / folders.NAMES_FILE).write_bytes(content)
        assert folders.read_names(tmp_path) == {}
        assert folders.resolve("checkpoint_step_10", tmp_path) == folder


@pytest.mark.parametrize("folder", ["../outside", "/outside", "a/checkpoint-1", "..\\outside", "..", "notes", 7, None])
def test_names_stand_for_checkpoints_of_the_run_alone(tmp_path, folder):
    """A names file from elsewhere cannot point out of the run, or at something that is no checkpoint."""
    for path in (tmp_path / "outside", tmp_path / "run" / "notes", tmp_path / "run" / "a" / "checkpoint-1"):
        path.mkdir(parents=True)
    (tmp_path / "run" / folders.NAMES_FILE).write_text(json.dumps({"best_model": folder}), encoding="utf-8")
    assert folders.read_names(tmp_path / "run") == {}
