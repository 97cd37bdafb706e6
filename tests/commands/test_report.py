"""The report of a run: a card that the hub can read, and curves."""

import json
import re
import shutil
import time

import matplotlib.axes
import pytest
import yaml
from huggingface_hub import ModelCard
from matplotlib.figure import Figure

from gpt2_hf.__main__ import main
from gpt2_hf.commands.report import (
    compare_runs,
    draw_curves,
    model_card,
    points,
    read_run,
    resumed_steps,
    write_report,
)
from gpt2_hf.runtime.stopwatch import Stopwatch

from ..conftest import read_json


@pytest.fixture(autouse=True)
def _curves_are_blank():
    """Not here: they are drawn."""


def test_card_has_metadata_results_and_a_sample(finished_run):
    """YAML header, the measured numbers, and how to load the model."""
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "text-generation"
    results = read_json(finished_run / "all_results.json")
    assert f"| validation loss | {results['eval_loss']:.4f} |" in card
    assert f"| test perplexity | {results['test_perplexity']:.2f} |" in card
    assert "## A sample\n\n> " in card and "from_pretrained" in card


def test_the_hub_reads_the_card(finished_run):
    """huggingface_hub finds the measured results in the metadata, as the hub shows them."""
    data = ModelCard.load(finished_run / "README.md").data
    results = read_json(finished_run / "all_results.json")
    measured = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert measured == {
        (split, metric): results[f"{prefix}_{metric}"]
        for prefix, split in (("eval", "validation"), ("test", "test"))
        for metric in ("loss", "perplexity")
    }
    assert data.library_name == "transformers" and data.tags == ["gpt2_hf"]


def test_best_model_can_be_published_as_it_is(finished_run):
    """The card and the picture it shows are in best_model too."""
    for name in ("README.md", "curves.png"):
        assert (finished_run / "best_model" / name).read_bytes() == (finished_run / name).read_bytes()


def test_card_names_the_weights_it_started_from():
    """A model of the hub is linked as the base model, a folder is not."""
    assert "base_model: openai-community/gpt2" in model_card({"model_name_or_path": "openai-community/gpt2"}, {}, None)
    for folder in ("./mine", "runs/first/best_model"):
        assert "base_model" not in model_card({"model_name_or_path": folder}, {}, None)


def test_card_records_settings_and_circumstances(finished_run):
    """The options and versions are in the card as JSON."""
    card = (finished_run / "README.md").read_text(encoding="utf-8")
    settings, provenance = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", card, flags=re.DOTALL))
    assert settings["d_model"] == 32
    assert {"torch", "transformers", "data", "date", "command"} <= provenance.keys()


def test_curves_are_a_picture(finished_run):
    """curves.png is a PNG of some size."""
    content = (finished_run / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5_000


def test_curves_are_drawn_once(finished_run, tmp_path, monkeypatch):
    """The best model has the same picture."""
    shutil.copytree(finished_run, tmp_path / "run")
    histories = []
    monkeypatch.setattr("gpt2_hf.commands.report.draw_curves", lambda history: histories.append(history) or b"drawn")
    write_report(tmp_path / "run", tmp_path / "run" / "best_model")
    assert len(histories) == 1
    for folder in (tmp_path / "run", tmp_path / "run" / "best_model"):
        assert (folder / "curves.png").read_bytes() == b"drawn"


def test_curves_have_a_time_axis_and_mark_resumes(monkeypatch):
    """A clock that begins again is a resume; each gets a line in the curves over the steps."""
    marked = []
    monkeypatch.setattr(matplotlib.axes.Axes, "axvline", lambda self, x, **kwargs: marked.append(x))
    history = [
        {"step": step, "loss": 5.0 - step / 10, "perplexity": 9.0, "hours": step / 10, "session_hours": clock}
        for step, clock in [(1, 0.1), (2, 0.2), (3, 0.05), (4, 0.15), (5, 0.01)]
    ]
    assert resumed_steps(history) == [2, 4]
    assert points(history, "loss", "hours")[0] == (0.1, 4.9)
    draw_curves(history)
    assert marked == [2, 4] * 3


def test_perplexity_has_a_logarithmic_axis(monkeypatch):
    """It falls by orders of magnitude; the losses, which are logarithms already, stay linear."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    history = [{"step": step, "hours": step, "loss": 9.0 / step, "perplexity": 8103.0 / step} for step in (1, 2, 3)]
    draw_curves(history)
    scales = {axes.get_title(): axes.get_yscale() for axes in figures[0].axes}
    assert [title for title, scale in scales.items() if scale == "log"] == ["perplexity per token"] and len(
        scales
    ) == 4


def test_a_resumed_run_is_marked(finished_run, train_tiny, tmp_path, monkeypatch):
    """A real run that went on from step 25 is marked there, and its hours go on."""
    # This process is older than the one that the run was begun in; a new one would not be, and would log soon.
    monkeypatch.setattr(Stopwatch, "elapsed", property(lambda watch: (time.monotonic() - watch._started) / 100))
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_tiny(run, "--resume_from", "latest", "--max_epochs", "2") == 0
    history = read_run(run).history
    hours = [entry["hours"] for entry in history if "hours" in entry]
    assert hours == sorted(hours) and resumed_steps(history) == [25]


def test_the_command_draws_one_run_again(finished_run, tmp_path, capsys):
    """Card and curves are written anew from the run's files; the sample stays."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "curves.png").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "README.md").read_text() == (finished_run / "README.md").read_text()
    assert (run / "curves.png").is_file() and "written: " in capsys.readouterr().out


def test_the_command_compares_runs(finished_run, tmp_path, capsys):
    """Several folders: one picture, and a table with a line for each, also for a run that has not finished."""
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    for name in ("trainer_state.json", "eval_results.json", "test_results.json", "train_results.json"):
        (other / name).unlink()
    picture = tmp_path / "comparison.png"
    assert main(["report", str(finished_run), str(other), "--output_file", str(picture)]) == 0
    head, first, second, last = capsys.readouterr().out.splitlines()
    loss = f"{read_json(finished_run / 'eval_results.json')['eval_loss']:.4f}"
    assert head.split()[:2] == ["run", "parameters"] and first.startswith("run ") and second.startswith("other ")
    assert loss in first and loss in second and "–" in second and "–" not in first
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in last


def test_an_unfinished_run_is_told_by_its_best_model(finished_run, tmp_path):
    """Which need not have the lowest loss: a text of a mix may decide, and then none may be the best."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for name in ("trainer_state.json", "eval_results.json"):
        (run / name).unlink()
    state = run / "checkpoint-25" / "trainer_state.json"
    content = read_json(state)
    losses = {entry["step"]: entry["eval_loss"] for entry in content["log_history"] if "eval_loss" in entry}
    for best in (10, 20, None):
        state.write_text(json.dumps({**content, "best_global_step": best}))
        assert read_run(run).results["eval_loss"] == losses[best or 25]


def write_evaluation(path, nll, **changes):
    """As `evaluate --output_file` writes it: a text of 40 pieces."""
    how = {"fingerprint": "f", "protocol": "blocks", "context": 32, "stride": None, "precision": "fp32"}
    pieces = {"tokens": [1000] * len(nll), "nll": nll}
    loss = None if None in nll else sum(nll) / 1000 / len(nll)
    path.write_text(json.dumps({"loss": loss, **how, "pieces": pieces, **changes}))


def test_runs_that_are_scored_on_one_text_are_compared(finished_run, tmp_path, capsys):
    """Files of one name that evaluate has left in the folders: a line says whether the difference is significant."""
    folders = [tmp_path / name for name in ("first", "second", "third")]
    hard_or_easy = [5000.0 + 300 * (i % 7) for i in range(40)]
    for number, folder in enumerate(folders):
        shutil.copytree(finished_run, folder)
        wobble = [number * (-20 + 10 * (i % 3)) for i in range(40)]
        write_evaluation(folder / "validation.json", [a + b for a, b in zip(hard_or_easy, wobble, strict=True)])
        write_evaluation(folder / "test.json", hard_or_easy, stride=16 if number else None)
        write_evaluation(folder / "rounded.json", hard_or_easy, precision="bf16" if number else "fp32")
        write_evaluation(folder / f"of_{number}.json", hard_or_easy)
        write_evaluation(folder / "broken.json", [None] * 40 if number else hard_or_easy)  # as NaN is written
        (folder / "notes.json").write_text("no JSON")
        (folder / "other.json").write_text("[1]")
    picture = str(tmp_path / "comparison.png")
    assert main(["report", *map(str, folders), "--output_file", picture]) == 0
    out = capsys.readouterr().out.splitlines()
    *_, broken_2, rounded_2, test_2, validation_2, broken_3, _rounded_3, test_3, validation_3, _written = out
    assert (
        broken_2.startswith("broken.json: first and second cannot be compared: a loss is not") and "third" in broken_3
    )
    assert validation_2.startswith(
        "validation.json: second is better than first by 0.0103 nats per token (95% interval "
    )
    assert validation_3.startswith("validation.json: third is better than first by 0.0205 nats")
    assert validation_2.endswith("over 40 segments of the text): statistically significant (95% interval excludes 0)")
    assert test_2.startswith("test.json: first and second cannot be compared") and "third cannot" in test_3
    assert rounded_2.startswith("rounded.json: first and second cannot be compared") and "precision)" in rounded_2
    assert len(out) == 1 + 3 + 8 + 1


def test_runs_of_one_name_are_told_apart(finished_run, tmp_path):
    """Two folders called run are named with their parents."""
    shutil.copytree(finished_run, tmp_path / "second" / "run")
    table = compare_runs([finished_run, tmp_path / "second" / "run"], tmp_path / "out.svg")
    assert table[2].startswith("second/run ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "nowhere holds no run"),
        (["RUN", "--output_file", "a.png"], "--output_file has no effect for a single run"),
        (["RUN", "RUN", "--output_file", "a.docx"], "--output_file: a.docx cannot be written"),
        (["RUN", "RUN", "--output_file", "~nosuch/a.png"], "--output_file: ~nosuch/a.png cannot be written"),
        (["RUN", "RUN", "--output_file", "a"], "--output_file: a needs an ending, such as a.png"),
        (["RUN", "nowhere"], "nowhere holds no run"),
    ],
)
def test_bad_report_commands_are_one_line(finished_run, capsys, options, message):
    """What is missing or has no effect is said."""
    assert main(["report", *(str(finished_run) if option == "RUN" else option for option in options)]) == 2
    err = capsys.readouterr().err
    assert message in err and "--output_file: nowhere" not in err and err.count("\n") == 1


def test_a_checkpoint_gets_no_report(finished_run, tmp_path, capsys):
    """It would be one that somebody has added to, which is never deleted; its run is named."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    checkpoint = run / "checkpoint-20"
    before = sorted(checkpoint.iterdir())
    assert main(["report", str(checkpoint)]) == 2
    assert f"is a checkpoint, which stays as it is; give its run: {run}\n" in capsys.readouterr().err
    assert sorted(checkpoint.iterdir()) == before


def test_a_damaged_record_is_one_line(finished_run, tmp_path, capsys):
    """A file that was cut while it was copied is named."""
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "trainer_state.json").write_text('{"log_history": [')
    for options in ([], [str(finished_run), "--output_file", str(tmp_path / "a.png")]):
        assert main(["report", str(tmp_path / "run"), *options]) == 2
        err = capsys.readouterr().err
        assert "trainer_state.json is not JSON (" in err and err.count("\n") == 1


def test_a_card_names_the_folder_that_is_there(finished_run, tmp_path):
    """Without a best model it is the last checkpoint; where nothing was saved, nothing can be loaded."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "best_model")
    write_report(run, read_run(run).model)
    assert 'AutoModelForCausalLM.from_pretrained("checkpoint-25")' in (run / "README.md").read_text(encoding="utf-8")
    for folder in run.glob("checkpoint-*"):
        shutil.rmtree(folder)
    write_report(run, read_run(run).model)
    assert "from_pretrained" not in (run / "README.md").read_text(encoding="utf-8")


def test_a_run_that_stopped_early_is_finished():
    """It ended because its validation loss did; one that ran out of time is cut short."""
    results = {"train_steps": 5, "planned_steps": 10}
    assert "Not finished" in model_card({}, results, None)
    assert "Not finished" not in model_card({}, {**results, "stopped_early": True}, None)


def test_a_home_folder_is_found(finished_run, tmp_path, monkeypatch):
    """A shell leaves `~` in `--runs=~/run`, and Python code everywhere."""
    shutil.copytree(finished_run, tmp_path / "run")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    (tmp_path / "run" / "curves.png").unlink()
    assert main(["report", "--runs=~/run"]) == 0
    assert (tmp_path / "run" / "curves.png").is_file()
    assert read_run("~/run").folder == tmp_path / "run"
    assert main(["report", "--runs", "~/run", str(finished_run), "--output_file", str(tmp_path / "two.png")]) == 0


def test_a_report_that_cannot_be_written_is_one_line(finished_run, capsys, monkeypatch):
    """A disk that refuses the picture."""

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gpt2_hf.commands.report.write_report", refuse)
    assert main(["report", str(finished_run)]) == 2
    assert "the report cannot be written (Permission denied)" in capsys.readouterr().err


def test_a_run_without_evaluation_still_has_a_report():
    """No validation entries: the picture and the card leave them out."""
    history = [{"step": step, "loss": 3.0, "perplexity": 20.0, "learning_rate": 1e-3} for step in (1, 2)]
    assert len(draw_curves(history)) > 5_000
    assert "validation" not in model_card({"dataset_name": "a/b"}, {"train_loss": 3.0}, None)


def test_card_names_a_hub_data_set():
    """A data set of the hub is linked in the metadata, a local folder is not."""
    assert "datasets:\n- a/b" in model_card({"dataset_name": "a/b"}, {}, None)
    assert "datasets:" not in model_card({"dataset_name": "../a/b"}, {}, None)
    assert "base_model: a/b" in model_card({"model_name_or_path": "a/b"}, {}, None)
    assert "base_model" not in model_card({"model_name_or_path": "best_model"}, {}, None)


def test_a_card_that_is_drawn_elsewhere_links_no_folder(finished_run, corpus_folder, tmp_path, monkeypatch):
    """Relative folders of data and of the model look like ids of the hub where they are not there."""
    shutil.copytree(corpus_folder, tmp_path / "data" / "own")
    shutil.copytree(finished_run / "best_model", tmp_path / "models" / "own")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    options = ["--dataset_name", "data/own", "--model_name_or_path", "models/own", "--max_length", "32", "--use_cpu"]
    options += ["--max_steps", "1", "--warmup_steps", "0", "--sample_tokens", "0", "--precision", "fp32"]
    assert main(["train", *options, "--checkpoint_dir", "run"]) == 0
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        assert main(["report", str(tmp_path / "run")]) == 0
        header = yaml.safe_load((tmp_path / "run" / "README.md").read_text(encoding="utf-8").split("---")[1])
        assert not {"datasets", "base_model"} & header.keys()
