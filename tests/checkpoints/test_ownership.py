"""What stands in a folder under the names of a run is a run's, or it is never touched."""

import contextlib
import json
import re
import shutil
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from gpt2_hf.checkpoints import folders, manifest, ownership, written
from gpt2_hf.checkpoints.event_files import delete_events, event_folder_name, gather_events, own_events
from gpt2_hf.checkpoints.ownership import refuse_foreign_checkpoints
from gpt2_hf.errors import UserError
from gpt2_hf.runtime.files import write_json

from ..foreign_names import FILES, FOLDERS, contents, plant
from ..runs import make_checkpoint

OLD_RUN = Path(__file__).parent.parent / "job" / "fixtures" / "run_of_dc2dd75.zip"


def foreign(run_dir, deleting=False, run_name=None):
    """What a run finds that has no name of its own, and deletes nothing, unless told otherwise."""
    return ownership.foreign(run_dir, deleting, event_folder_name(run_dir, run_name))


def refuse_foreign(run_dir, deleting=False, run_name=None):
    """See `foreign`."""
    ownership.refuse_foreign(run_dir, deleting, event_folder_name(run_dir, run_name))


CONTENTS = [b"mine", b'{"mine": 1}', b"\x89PNG mine", b"---\nmine\n---\n# mine"]


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_whatever_has_a_name_of_ours_is_refused_and_kept(tmp_path, name):
    """In a folder of its own, whatever its content: refused by its name, and no function changes a byte of it."""
    for content in CONTENTS:
        shutil.rmtree(tmp_path / "folder", ignore_errors=True)
        plant(tmp_path / "folder", name, content)
        before = contents(tmp_path / "folder")
        with pytest.raises(UserError, match="was not written by a run of gpt2_hf"):
            refuse_foreign(tmp_path / "folder")
        assert contents(tmp_path / "folder") == before


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_trainer_without_a_job_is_refused_what_it_would_write(tmp_path, name):
    """Checkpoints, their names and the best model, whole or half; transformers writes the other files."""
    plant(tmp_path, name)
    if name in ("checkpoint_names.json", *FOLDERS) or name.startswith("tmp-"):
        with pytest.raises(UserError, match="was not written by a run of gpt2_hf"):
            refuse_foreign_checkpoints(tmp_path, publishes_best=True)
    else:
        refuse_foreign_checkpoints(tmp_path, publishes_best=True)
    if name.startswith("best_model"):
        refuse_foreign_checkpoints(tmp_path, publishes_best=False)
    refuse_foreign_checkpoints(tmp_path / "nowhere", publishes_best=True)


@pytest.mark.parametrize("name", ["", "/events.out.tfevents.1.host", "/validation/events.out.tfevents.1.gpt2_hf"])
def test_event_files_under_the_name_of_the_run_are_refused(tmp_path, name):
    """Which it would be mixed with, under the name it is given or that of its folder; others there may stay."""
    for folder, run_name in (("mine", "mine"), ("run", None)):
        run = tmp_path / "run"
        plant(run, f"runs/{folder}{name}")
        with pytest.raises(UserError, match="was not written by a run of gpt2_hf"):
            refuse_foreign(run, run_name=run_name)
        refuse_foreign(run, run_name="another")
        delete_events(run, folder)
        assert (run / f"runs/{folder}{name}").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("run_name", "folder"),
    [
        *((None, "book"), ("", "book"), ("out/book", "book"), ("first", "first"), ("lr=3e-4, b 8", "lr=3e-4, b 8")),
        *(("a/b", "a-b"), ("../..", "-"), ("C:\\x?", "C--x-"), ("..", "run"), ("é", "é"), ("x" * 300, "x" * 100)),
    ],
)
def test_the_name_of_a_run_is_that_of_a_folder(run_name, folder, tmp_path, monkeypatch):
    """Whatever it is called, its event files stay in its folder; without a name it is called as that is."""
    monkeypatch.chdir(tmp_path)
    assert event_folder_name("out/book", run_name) == folder
    assert event_folder_name(folder, folder) == event_folder_name("elsewhere", folder) == folder
    assert event_folder_name(".") == tmp_path.name and event_folder_name("/") == "run"


@pytest.mark.parametrize("before", [None, "validation"])
def test_a_resumed_run_has_its_events_in_one_folder(tmp_path, before):
    """Those of another name, and of versions without names; what others have there stays, and is no obstacle."""
    own = b"\x18\0\0\0\0\0\0\0brain.Event:2"
    name = "events.out.tfevents.{}.gpt2_hf"
    parts = {
        1: "",
        2: "book/",
        3: "book/validation/",
        **({4: "validation/", 5: "validation/validation/"} if before else {}),
    }
    for number, part in parts.items():
        plant(tmp_path / "book", f"runs/{part}{name.format(number)}", own)
    plant(tmp_path / "book", "runs/other/notes.txt")
    plant(tmp_path / "book", f"runs/other/{name.format(6)}", own)
    written.write_json(tmp_path / "book", "resolved_config.json", {"provenance": {"run_name": before}})
    gather_events(tmp_path / "book", "book")
    moved = {f"book/validation/{name.format(n)}" if n in (3, 5) else f"book/{name.format(n)}" for n in parts}
    runs = tmp_path / "book" / "runs"
    assert set(contents(runs)) == {*moved, "other/notes.txt", f"other/{name.format(6)}"}
    assert sorted(path.name for path in runs.iterdir()) == ["book", "other"]
    delete_events(tmp_path / "book", "book")
    assert sorted(path.name for path in runs.iterdir()) == ["other"]


@pytest.mark.parametrize("name", [*written.FILE_NAMES, *FOLDERS])
def test_writing_deleting_and_rotating_leave_what_no_run_wrote(tmp_path, name):
    """Where a run is in the folder already, and nobody has looked before."""
    make_checkpoint(tmp_path, 1)
    make_checkpoint(tmp_path, 9)
    plant(tmp_path, name)
    before = contents(tmp_path)[name if name not in FOLDERS else f"{name}/model.safetensors"]
    if name in written.FILE_NAMES:
        with pytest.raises(FileExistsError, match="left as it is"):
            written.write_text(tmp_path, name, "ours")
        written.delete(tmp_path, name)
    elif name in ("checkpoint-7", "tmp-checkpoint-7", "checkpoint-7.replaced"):
        with pytest.raises(FileExistsError):
            make_checkpoint(tmp_path, 7)
    folders.rotate(tmp_path, keep_last=1)
    folders.set_aside_after(tmp_path, 1)
    folders.delete_run(tmp_path)
    assert before == contents(tmp_path)[name if name not in FOLDERS else f"{name}/model.safetensors"]


def test_what_a_run_wrote_is_its_own_until_it_is_edited(tmp_path):
    """Written twice, it may be written a third time and deleted; edited by hand, it stays."""
    for text in ("first", "second", "first"):
        written.write_text(tmp_path, "README.md", text)
    refuse_foreign(tmp_path)
    (tmp_path / "README.md").write_text("first, and a word of mine")
    with pytest.raises(UserError, match=r"README\.md was not written by a run of gpt2_hf, or was changed since"):
        refuse_foreign(tmp_path)
    written.delete(tmp_path, "README.md")
    assert (tmp_path / "README.md").read_text() == "first, and a word of mine"


@pytest.mark.parametrize("platform", [sys.platform, "win32"])
def test_two_writers_at_once_know_each_others_files(tmp_path, monkeypatch, platform):
    """A run that goes on, and a report of it; also where a folder cannot be locked."""
    monkeypatch.setattr(written, "sys", SimpleNamespace(platform=platform))
    names = ("all_results.json", "README.md")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: written.write_text(tmp_path, names[i % 2], f"{{{i}}}"), range(80)))
    assert all(written.is_own(tmp_path, name) for name in names)
    assert len(json.loads((tmp_path / written.RECORD_NAME).read_text())["sha256"]["README.md"]) == 40


@pytest.mark.parametrize("size", [0, 1, 9, 40])
def test_a_process_killed_while_it_writes_does_not_lock_itself_out(tmp_path, size):
    """Torn files under temporary names, before and after the first record, are a run's."""
    record = '{\n  "sha256": {\n    "checkpoint_names.json": ["0"]\n  }\n}\n'
    (tmp_path / "tmp-written_files.json").write_text(record[:size])
    (tmp_path / "tmp-run.lock-host-7").write_text('{"pid": 7, "host": "here", "processes": ""}'[:size])
    refuse_foreign(tmp_path)
    written.write_json(tmp_path, "resolved_config.json", {"seed": 1})
    (tmp_path / "tmp-README.md").write_text("---\nlibrary_name: transformers and more\n"[:size])
    (tmp_path / "tmp-resolved_config.json").write_text('{\n "d_model": 32, "num_layers": 2, "seed": 42}'[:size])
    folders.open_staging(tmp_path, "checkpoint-5")
    refuse_foreign(tmp_path)


@pytest.mark.parametrize("survivors", range(4))
def test_a_process_killed_while_it_deletes_does_not_lock_itself_out(tmp_path, monkeypatch, survivors):
    """However many files of a replaced folder are still there, it is a run's."""
    make_checkpoint(tmp_path, 1)
    deleted, unlink = [], Path.unlink

    def unlink_some(path):
        if len(deleted) == 4 - survivors:
            raise KeyboardInterrupt
        if path.parent.name == "checkpoint-1":
            deleted.append(path)
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_some)
        with contextlib.suppress(KeyboardInterrupt):
            folders.rotate(tmp_path, keep_last=1, just_saved="checkpoint-2")
            folders.delete_run(tmp_path)
    if (tmp_path / "checkpoint-1").exists():
        (tmp_path / "checkpoint-1").rename(tmp_path / "checkpoint-1.replaced")
    refuse_foreign(tmp_path, deleting=True)
    folders.repair(tmp_path)
    refuse_foreign(tmp_path, deleting=True)


def test_a_record_that_was_torn_off_on_windows_is_a_runs(tmp_path, monkeypatch):
    """Where a line end is two characters, unless one says otherwise."""

    def on_windows(path, text, encoding, newline=None):
        path.write_bytes((text if newline == "\n" else text.replace("\n", "\r\n")).encode(encoding))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", on_windows)
        written.write_json(tmp_path, "resolved_config.json", {"seed": 1})
    record = (tmp_path / written.RECORD_NAME).read_bytes()
    for size in (1, 9, 40):
        (tmp_path / "tmp-written_files.json").write_bytes(record[:size])
        refuse_foreign(tmp_path)


def test_a_file_that_cannot_be_deleted_leaves_its_folder_a_runs(tmp_path, monkeypatch):
    """As one that is open, on Windows: no start is refused, and the next rotation deletes the folder."""
    for step in (1, 2):
        make_checkpoint(tmp_path, step)
    kept, unlink = tmp_path / "checkpoint-1" / "model.safetensors", Path.unlink

    def refuse(path, missing_ok=False):
        if path == kept:
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        patch.setattr(folders.shutil, "rmtree", lambda *args, **kwargs: None)  # which cannot either
        folders.rotate(tmp_path, keep_last=1)
    assert kept.exists()
    refuse_foreign(tmp_path)
    refuse_foreign(tmp_path, deleting=True)
    folders.rotate(tmp_path, keep_last=1)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_a_report_stays_with_the_model_that_it_is_of(tmp_path):
    """It is not put beside the next best model, nor in the way of a deletion; one that was edited is kept."""
    best = tmp_path / "best_model"
    folders.publish_best_model(make_checkpoint(tmp_path, 1), tmp_path)
    for name in written.BEST_MODEL_FILES:
        written.write_text(tmp_path, name, "of step 1")
    folders.publish_best_model(make_checkpoint(tmp_path, 2), tmp_path)
    assert not any((tmp_path / name).exists() for name in written.BEST_MODEL_FILES)
    written.write_text(tmp_path, f"{folders.BEST_MODEL}/README.md", "of step 2")
    best.rename(tmp_path / "best_model.replaced")  # killed before the next one had the name
    refuse_foreign(tmp_path, deleting=True)
    folders.repair(tmp_path)
    (best / "README.md").write_text("mine")
    folders.publish_best_model(make_checkpoint(tmp_path, 3), tmp_path)
    assert (best / "README.md").read_text() == "mine"


def test_files_added_to_a_checkpoint_stay(tmp_path):
    """It is not rotated away, its successor takes them over, and a deletion is refused before it begins."""
    (make_checkpoint(tmp_path, 1) / "notes.txt").write_text("mine")
    make_checkpoint(tmp_path, 2)
    folders.rotate(tmp_path, keep_last=1)
    assert (tmp_path / "checkpoint-1" / "notes.txt").read_text() == "mine"
    make_checkpoint(tmp_path, 1, "new")
    assert (tmp_path / "checkpoint-1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "new"
    refuse_foreign(tmp_path)
    with pytest.raises(UserError, match=r"notes\.txt was not written by a run"):
        refuse_foreign(tmp_path, deleting=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", ["mine", "MINE !!"], ids=["another size", "the same size"])
def test_what_somebody_saves_over_the_best_model_is_kept(tmp_path, name, content, capsys):
    """A run is refused; one that is under way keeps it beside the next best model, and the one after that too."""
    best = tmp_path / "best_model"
    for step in (1, 2):
        folders.publish_best_model(make_checkpoint(tmp_path, step, further=["config.json"]), tmp_path)
        refuse_foreign(tmp_path)
        if content != "mine":
            content = "M" * (best / name).stat().st_size
        (best / name).unlink()
        (best / name).write_text(content)
        for refuse in (refuse_foreign, lambda run: refuse_foreign_checkpoints(run, publishes_best=True)):
            with pytest.raises(UserError, match=rf"best_model.{re.escape(name)} was not written by a run of gpt2_hf"):
                refuse(tmp_path)
        refuse_foreign_checkpoints(tmp_path, publishes_best=False)
    folders.publish_best_model(make_checkpoint(tmp_path, 3), tmp_path)
    assert (tmp_path / "best_model.kept" / name).read_text() == (tmp_path / "best_model.kept-2" / name).read_text()
    assert (tmp_path / "best_model.kept" / name).read_text() == content and manifest.damage(best) is None
    refuse_foreign(tmp_path)
    assert capsys.readouterr().out.splitlines() == [
        f"{best / name} was changed by somebody else; that file is now {tmp_path / folder / name}"
        for folder in ("best_model.kept", "best_model.kept-2")
    ]


def test_a_damaged_checkpoint_is_no_reason_to_refuse_its_best_model(tmp_path):
    """They have their weights in common: what is saved over these is kept, and damage stops no run."""
    folders.publish_best_model(make_checkpoint(tmp_path, 1), tmp_path)
    (tmp_path / "best_model" / "model.safetensors").write_text("half")
    assert "model.safetensors" in (manifest.damage(tmp_path / "checkpoint-1") or "")
    refuse_foreign(tmp_path)
    folders.publish_best_model(make_checkpoint(tmp_path, 2), tmp_path)
    assert (tmp_path / "best_model.kept" / "model.safetensors").read_text() == "half"


def test_names_stand_for_checkpoints_of_the_run_alone(tmp_path):
    """Whatever somebody has written into the file of names, it leads nowhere else."""
    make_checkpoint(tmp_path / "run", 10)
    make_checkpoint(tmp_path / "other", 10)
    names = {"best_model": "../other/checkpoint-10", "a": str(tmp_path), "b": ["checkpoint-10"], "c": "checkpoint-10"}
    write_json(tmp_path / "run" / folders.NAMES_FILE, names)
    assert folders.read_names(tmp_path / "run") == {"c": "checkpoint-10"}


def test_a_run_of_an_earlier_version_is_known_by_its_content(tmp_path):
    """It has no record; nothing of it is refused, and all of it can be deleted."""
    zipfile.ZipFile(OLD_RUN).extractall(tmp_path)
    run = tmp_path / "run"
    assert list(foreign(run, deleting=True)) == []
    (run / "README.md").write_text("# my project")
    assert list(foreign(run)) == [run / "README.md"]
    folders.delete_run(run)
    assert [path.name for path in run.iterdir()] == ["README.md"]


def test_event_files_of_other_programs_stay(tmp_path, finished_run):
    """Those in folders of their own are no clash; those beside a run's would be mixed into its curves."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "runs" / "other").mkdir()
    (run / "runs" / "other" / "events.out.tfevents.1").write_bytes(b"mine")
    (run / "runs" / "notes.txt").write_bytes(b"mine")
    assert list(foreign(run, deleting=True)) == []
    events = own_events(run, "run")
    assert events == sorted((run / "runs").rglob("*.gpt2_hf")) and len(events) > 1
    (run / "runs" / "events.out.tfevents.2").write_bytes(b"mine")
    assert list(foreign(run)) == [run / "runs" / "events.out.tfevents.2"]
    assert list(foreign(run, run_name="other"))[1:] == [run / "runs" / "other" / "events.out.tfevents.1"]
