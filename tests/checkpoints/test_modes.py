"""Who may read what a run leaves: the umask decides, and a missing permission is called one."""

import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.checkpoints.state_files import save_state

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")


@pytest.fixture(params=[0o022, 0o077, 0o027], ids=oct)
def umask(request):
    """The umask while a test runs."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    """The permissions of every file below a folder."""
    return {
        path.relative_to(folder): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()
    }


def committed(folder, name="checkpoint-3"):
    """A checkpoint with one file of state and one of text."""
    staging = folders.open_staging(folder, name)
    save_state({"weights": torch.ones(3)}, staging / "model.safetensors")
    (staging / "config.json").write_text("{}")
    folders.commit(staging, folder / name)
    return folder / name


def test_a_folder_follows_the_umask_when_it_is_committed(tmp_path, umask):
    """Weights, state and manifest alike, and nothing else is left in the folder."""
    checkpoint = committed(tmp_path)
    folders.publish_best_model(checkpoint, tmp_path)
    found = modes(tmp_path)
    assert set(found.values()) == {0o666 & ~umask}
    assert {path.name for path in found} == {"model.safetensors", "config.json", "manifest.json"}
    assert manifest.damage(checkpoint) is None


def test_permissions_that_cannot_be_set_end_no_run(tmp_path, monkeypatch):
    """Some mounted file systems have one for all files."""

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)
    assert manifest.damage(committed(tmp_path)) is None


def test_a_whole_run_and_an_export_follow_the_umask(tmp_path, umask, train_tiny):
    """Every file of a run, the log and the model card included, and those of an exported model."""
    assert train_tiny(tmp_path / "run", "--max_steps", "4") == 0
    assert (
        main(["export", "--model_path", str(tmp_path / "run" / "best_model"), "--output_dir", str(tmp_path / "x")])
        == 0
    )
    found = modes(tmp_path)
    assert {path.parts[0] for path in found} == {"run", "x"}
    assert {path: mode for path, mode in found.items() if mode != 0o666 & ~umask} == {}


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_damage_calls_a_missing_permission_one(unprivileged, name):
    """The manifest, or a file of it."""
    checkpoint = committed(unprivileged)
    (checkpoint / name).chmod(0)
    assert manifest.damage(checkpoint) == f"{name} cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", ".", ".."])
def test_a_model_that_may_not_be_read_is_called_so(unprivileged, name, capsys):
    """Whichever file it is, or the folder, or the one above: one line that names it, and no word about its absence."""
    folder = unprivileged / "above" / "best_model"
    folder.parent.mkdir(parents=True)
    committed(folder.parent, "best_model")
    (folder / name).chmod(0)
    assert main(["evaluate", "--model_path", str(folder)]) == 2
    message = capsys.readouterr().err
    assert "--model_path: " in message and "cannot be read: Permission denied" in message
    assert message.count("\n") == 1 and str((folder / name).resolve()) in message
