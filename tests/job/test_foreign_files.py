"""A run in a folder that other people use: nothing that no run wrote is changed, whatever the start."""

import shutil

import pytest

from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import folders

from ..foreign_names import FILES, FOLDERS, contents, plant

# Without it the first start would find nothing in the way of a run.
PROJECT = {"main.py": "print()", "survey_results.json": "{}", "runs/other/events.out.tfevents.1.host": "mine"}


def plant_project(folder):
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("options", [(), ("--overwrite_output_dir",), ("--resume_from", "latest")])
@pytest.mark.parametrize("holds_a_run", [False, True])
def test_a_clash_is_refused_before_anything_is_written(
    train_tiny, finished_run, tmp_path, capsys, options, holds_a_run
):
    """Files under all names and patterns of ours, alone or beside a run, and each kind of start: no byte changes."""
    run = tmp_path / "run"
    for name in ("README.md", "curves.png", "trainer_state.json", "best_model", "tmp-checkpoint-7", "run.lock", ""):
        shutil.rmtree(run, ignore_errors=True)
        if holds_a_run:
            shutil.copytree(finished_run, run)
            shutil.rmtree(run / "best_model")
        run.mkdir(exist_ok=True)
        plant_project(run)
        for planted in [name] if name else [*FILES, *FOLDERS]:
            if planted != "runs":
                plant(run, planted)
        before = contents(run)
        assert train_tiny(run, *options) == 2
        err = capsys.readouterr().err
        assert "was not written by a run of gpt2_hf" in err and err.count("\n") == 1 and name in err
        assert contents(run) == before


def test_a_project_without_a_clash_can_hold_a_run(tiny_options, tmp_path, monkeypatch):
    """--checkpoint_dir . beside other files: trained, resumed, overwritten and reported, and they are as they were."""
    plant_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["train", *tiny_options, "--checkpoint_dir", ".", "--max_steps", "2", "--sample_tokens", "0"]
    for options in ([], ["--resume_from", "latest"], ["--overwrite_output_dir"]):
        assert main([*command, *options]) == 0
        assert main(["report", "."]) == 0
        assert {name: (tmp_path / name).read_text() for name in PROJECT} == PROJECT
    folders.delete_run(tmp_path)


def test_a_card_that_was_edited_is_not_written_again(finished_run, train_tiny, tmp_path, capsys):
    """Neither by `report` nor by a run that goes on, which name it; nor one that appears while a run trains."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for name in ("README.md", "best_model/README.md"):
        written = (run / name).read_text()
        (run / name).write_text("# my model")
        before = contents(run)
        assert main(["report", str(run)]) == 2
        assert train_tiny(run, "--resume_from", "latest", "--max_epochs", "2") == 2
        assert capsys.readouterr().err.count(f"{name} was not written by a run") == 2
        assert contents(run) == before
        (run / name).write_text(written)


def test_a_card_that_appears_during_a_run_stays(train_tiny, tmp_path, capsys, monkeypatch):
    """The run ends as it should, and says what it has not written."""
    from gpt2_hf.job import main_job

    finish = main_job.finish

    def with_card(run, *args):
        (run.output_dir / "README.md").write_text("# mine")
        finish(run, *args)

    monkeypatch.setattr(main_job, "finish", with_card)
    assert train_tiny(tmp_path / "run", "--max_steps", "2") == 0
    assert (tmp_path / "run" / "README.md").read_text() == "# mine"
    assert "README.md was not written by this run" in capsys.readouterr().out
    assert (tmp_path / "run" / "best_model" / "README.md").is_file()


def test_a_picture_is_replaced_only_where_it_is_named(finished_run, tmp_path, capsys, monkeypatch):
    """`report` of several runs: the default name is not taken from somebody else's picture."""
    monkeypatch.chdir(tmp_path)
    command = ["report", str(finished_run), str(finished_run)]
    assert main(command) == 0 and main(command) == 0
    (tmp_path / "comparison.png").write_bytes(b"mine")
    assert main(command) == 2
    assert "name the picture to be written" in capsys.readouterr().err
    assert (tmp_path / "comparison.png").read_bytes() == b"mine"
    assert main([*command, "--output_file", "comparison.png"]) == 0


def test_an_export_leaves_its_neighbours_alone(finished_run, tmp_path, capsys):
    """A folder under the name that it is filled under is not deleted, even if it is a model of a run."""
    shutil.copytree(finished_run / "best_model", tmp_path / "tmp-exported")
    (tmp_path / "tmp-exported" / "file").write_text("mine")
    command = ["export", "--model_path", str(tmp_path / "tmp-exported")]
    assert main([*command, "--output_dir", str(tmp_path / "exported")]) == 2
    assert "tmp-exported already exists" in capsys.readouterr().err
    assert (tmp_path / "tmp-exported" / "file").read_text() == "mine"
