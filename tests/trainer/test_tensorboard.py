"""What TensorBoard draws of a run with its default smoothing: of few points and of thousands, also after a resume."""

import errno
import math
import random

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer import event_file_writer
from transformers import TrainerControl, TrainerState, TrainingArguments

from gpt2_hf.trainer.callbacks import ContinuousTensorBoardCallback, tensorboard

from .helpers import make_trainer

SMOOTHING = 0.6  # TensorBoard's default


def smoothed(values):
    """What TensorBoard draws of a curve where it smooths: its `resmoothDataset`, a mean that forgets."""
    drawn, last = [], 0.0
    for number, value in enumerate(values, 1):
        last = SMOOTHING * last + (1 - SMOOTHING) * value
        drawn.append(last / (1 - SMOOTHING**number))
    return drawn


def values_of(folder, tag):
    """The curve as TensorBoard reads it, `{step: value}`; its loader keeps the last point of each step."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in accumulator.Scalars(tag)}


def charts_of(folder):
    """The charts of "Custom Scalars"."""
    (event,) = EventAccumulator(str(folder)).Reload().Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {chart.title: chart for category in layout.category for chart in category.chart}


def falling(num_points, noise):
    """A loss that falls from 10.8 to 4.6, most of it at the beginning."""
    generator = random.Random(0)
    shares = [number / num_points for number in range(1, num_points + 1)]
    return [4.6 + 6.2 * math.exp(-5 * share) + generator.gauss(0, noise) for share in shares]


def write(output_dir, logs, state=None, **options):
    """Let the callback write `(step, logs)`."""
    args = TrainingArguments(str(output_dir), use_cpu=True, **options)
    state, control = state or TrainerState(), TrainerControl()
    callback = ContinuousTensorBoardCallback()
    callback.on_init_end(args, state, control)
    callback.on_train_begin(args, state, control)
    for state.global_step, numbers in logs:
        callback.on_log(args, state, control, logs=numbers)
    callback.on_train_end(args, state, control)


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_full_disk_costs_the_curves_alone(tmp_path, monkeypatch, capsys, seconds):
    """The training goes on, with one line about it; after a while the curve does too."""
    refused, close = [], event_file_writer.EventFileWriter.close

    def refuse_to_close(writer):
        close(writer)  # its thread ends all the same; it would go on into the next test
        refuse(writer)

    def refuse(*arguments):
        refused.append(arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill_the_disk():
        yield 1, {"loss": 3.0}
        with monkeypatch.context() as full:
            full.setattr(event_file_writer.EventFileWriter, "flush", refuse)
            full.setattr(event_file_writer.EventFileWriter, "close", refuse_to_close)
            yield 2, {"loss": 2.0}
            yield 3, {"loss": 1.5}
        yield 4, {"loss": 1.0}

    monkeypatch.setattr(tensorboard, "_RETRY_SECONDS", seconds)
    write(tmp_path, fill_the_disk())
    curve = values_of(tmp_path / "runs" / tmp_path.name, "train/loss")
    assert curve[1] == 3.0
    if seconds:
        assert 4 not in curve and len(refused) == 2  # the second log, and the end of its file
    else:
        assert curve[4] == 1.0
    assert capsys.readouterr().err.count("curves cannot be written") == 1


def test_what_a_resumed_run_makes_again_is_purged_after_a_full_disk_too(tmp_path, monkeypatch):
    """The first file that can be written says from which step on earlier points do not count."""
    write(tmp_path, [(step, {"loss": 9.0}) for step in range(1, 7)])
    flush = event_file_writer.EventFileWriter.flush
    calls = []

    def refuse_once(writer):
        calls.append(writer)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(writer)

    monkeypatch.setattr(event_file_writer.EventFileWriter, "flush", refuse_once)
    monkeypatch.setattr(tensorboard, "_RETRY_SECONDS", 0.0)
    write(tmp_path, [(4, {"loss": 2.0}), (5, {"loss": 1.0})], TrainerState(global_step=3))
    curve = values_of(tmp_path / "runs" / tmp_path.name, "train/loss")
    assert curve[3] == 9.0 and curve[5] == 1.0 and 6 not in curve and curve.get(4) != 9.0
    calls[0].close()  # whose thread would go on writing when the folder is gone


@pytest.mark.parametrize("num_points", [5, 5000])
def test_training_and_validation_are_true_in_one_chart(tmp_path, num_points):
    """One tag, a run for each; in a chart that is not smoothed, so that both end at what was measured."""
    training = falling(num_points, noise=0.02 if num_points == 5 else 0.15)
    validation = [value + 0.1 for value in falling(num_points, noise=0)]
    logs = [
        (100 * number, {"loss": one, "eval_loss": other, "eval_perplexity": math.exp(other)})
        for number, (one, other) in enumerate(zip(training, validation, strict=True), 1)
    ]
    write(tmp_path / "book", logs)
    folder = tmp_path / "book" / "runs" / "book"
    chart = charts_of(folder)["loss"]
    (series,) = chart.margin.series  # the kind of chart that has no smoothing
    assert series.value == series.lower == series.upper == "curves/loss" and not chart.multiline.tag
    for run, measured in ((folder, training), (folder / "validation", validation)):
        points = values_of(run, series.value)
        assert list(points) == [step for step, _ in logs]  # one each: nothing was added for the eye
        assert list(points.values()) == pytest.approx(measured, rel=1e-6)
        assert abs(list(points.values())[-1] - measured[-1]) < 0.02
    assert values_of(folder, "eval/loss") == values_of(folder / "validation", "curves/loss")
    # Why: of few points the smoothed chart ends far above what was measured. Of thousands it does not.
    error = smoothed(validation)[-1] - validation[-1]
    assert error > 0.2 if num_points == 5 else abs(error) < 0.02


def test_a_curve_smoothed_by_tensorboard_is_known():
    """The function above is TensorBoard's: a constant stays, the first point is kept, the rest follow."""
    assert smoothed([2.0] * 4) == pytest.approx([2.0] * 4)
    assert smoothed([10.0, 5.0]) == pytest.approx([10.0, (0.6 * 0.4 * 10 + 0.4 * 5) / 0.64])


def test_the_chart_of_both_has_no_part_of_teachers(tmp_path):
    """The validation loss has none either."""
    write(tmp_path / "book", [(1, {"loss": 2.0, "cross_entropy": 3.0, "eval_loss": 3.5})])
    folder = tmp_path / "book" / "runs" / "book"
    assert values_of(folder, "curves/loss") == {1: 3.0} and values_of(folder, "train/loss") == {1: 2.0}


def test_a_run_without_evaluation_has_no_empty_companion(tmp_path):
    """The run of the validation curves is there when there is something in it."""
    write(tmp_path / "book", [(1, {"loss": 2.0, "perplexity": 7.4})])
    assert [path.name for path in (tmp_path / "book" / "runs").iterdir()] == ["book"]
    assert not (tmp_path / "book" / "runs" / "book" / "validation").exists()


def test_numbers_of_the_users_have_curves_and_the_closing_summary_has_none(tmp_path):
    """Also those of an evaluation on the training text; what transformers says at the end is one number a run."""
    summary = {"train_loss": 1.0, "train_runtime": 2.0, "total_flos": 1.0}
    write(tmp_path / "book", [(1, {"train_accuracy": 0.5}), (2, {"train_loss": 3.0}), (3, summary)])
    folder = tmp_path / "book" / "runs" / "book"
    assert values_of(folder, "train/train_accuracy") == {1: 0.5}
    assert values_of(folder, "train/train_loss") == {2: 3.0}


def test_a_resume_goes_on_in_both_curves(tmp_path, monkeypatch):
    """Points after the checkpoint that is resumed from are replaced, in training and in validation."""
    # files of one second are read in the order of this number as text, in which 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    logs = [(step, {"loss": 9.0 - step, "eval_loss": 9.5 - step}) for step in range(1, 5)]
    write(tmp_path / "book", logs)
    again = [(step, {"loss": 1.0 * step, "eval_loss": 2.0 * step}) for step in range(3, 6)]
    write(tmp_path / "book", again, TrainerState(global_step=2))
    folder = tmp_path / "book" / "runs" / "book"
    assert values_of(folder, "curves/loss") == {1: 8.0, 2: 7.0, 3: 3.0, 4: 4.0, 5: 5.0}
    assert values_of(folder / "validation", "curves/loss") == {1: 8.5, 2: 7.5, 3: 6.0, 4: 8.0, 5: 10.0}


def test_a_training_that_begins_anew_leaves_the_curves_of_an_earlier_one(tmp_path):
    """Each gets a name of its own, and goes on under it when it is resumed; a search replaces those of its trials."""

    def train(resumed=None, **options):
        make_trainer(tmp_path / "book", report_to="tensorboard", eval_strategy="no", **options).train(resumed)
        return {path.name: list(values_of(path, "train/loss")) for path in (tmp_path / "book" / "runs").iterdir()}

    assert train(max_steps=3, save_steps=2) == {"book": [1, 2, 3]}
    assert train() == {"book": [1, 2, 3], "book-2": [1, 2, 3, 4]}
    assert train(max_steps=1) == {"book": [1, 2, 3], "book-2": [1, 2, 3, 4], "book-3": [1]}
    longer = train(str(tmp_path / "book" / "_abandoned-checkpoint-4"), max_steps=5)
    assert longer == {"book": [1, 2, 3], "book-2": [1, 2, 3, 4, 5], "book-3": [1]}


def test_an_evaluation_is_in_the_curve_of_its_training(tmp_path, monkeypatch):
    """Of the first one still to come, else of the last; the next training has a curve of its own all the same."""
    # files of one second are read in the order of this number as text, in which 10 comes before 9
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    options = {"report_to": "tensorboard", "eval_strategy": "no"}
    whole = [1, 2, 3, 4]

    def steps_of(tag):
        return [list(values_of(path, tag)) for path in sorted((tmp_path / "book" / "runs").iterdir())]

    trainer = make_trainer(tmp_path / "book", **options)
    trainer.train()
    trainer.evaluate()
    trainer.train()
    assert steps_of("train/loss") == [whole, whole]
    other = make_trainer(tmp_path / "book", **options)
    other.evaluate()
    other.train()
    other.evaluate()
    assert steps_of("train/loss") == [whole, whole, whole]
    book, _, third = sorted((tmp_path / "book" / "runs").iterdir())
    assert [list(values_of(path, "eval/loss")) for path in (book, third)] == [[4], [0, 4]]
    other.train(resume_from_checkpoint="checkpoint-2")
    assert steps_of("train/loss") == [whole, whole, whole]
    assert list(values_of(third, "eval/loss")) == [0]  # what came after the checkpoint is purged


def test_curves_follow_another_output_dir(tmp_path):
    """As the checkpoints do, and transformers' curves."""
    trainer = make_trainer(tmp_path / "first", report_to="tensorboard")
    trainer.evaluate()
    trainer.args.output_dir = str(tmp_path / "second")
    trainer.train()
    assert list(values_of(tmp_path / "second" / "runs" / "second", "train/loss")) == [1, 2, 3, 4]
    assert list(values_of(tmp_path / "first" / "runs" / "first", "eval/loss")) == [0]


def test_runs_are_told_apart(tmp_path, monkeypatch):
    """In one folder for all runs each has one of its own, called as --run_name says; a search has one per trial."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "all"))
    write(tmp_path / "a", [(1, {"loss": 1.0})])
    write(tmp_path / "b", [(1, {"loss": 2.0})], run_name="second: lr 3e-4")
    write(tmp_path / "c", [(1, {"loss": 3.0, "eval_loss": 4.0})], TrainerState(trial_name="t1"))
    folders = {path.parent.relative_to(tmp_path / "all").as_posix() for path in (tmp_path / "all").rglob("*.gpt2_hf")}
    assert folders == {"a", "second- lr 3e-4", "c/t1", "c/t1/validation"}
    assert not (tmp_path / "a" / "runs").exists()
