"""When a run evaluates, saves and stops: each callback on its own."""

import math
import re
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from gpt2_hf.errors import TrainingDivergedError
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime import stopwatch
from gpt2_hf.runtime.stop_signals import SignalWatch
from gpt2_hf.runtime.stopwatch import Stopwatch
from gpt2_hf.trainer.callbacks import (
    CadenceCallback,
    LossSpikes,
    NonFiniteGuard,
    ProgressCallback,
    StopCallback,
    TimeBudgetCallback,
)
from gpt2_hf.trainer.callbacks import progress as progress_module
from gpt2_hf.trainer.callbacks.tensorboard import tag_of
from gpt2_hf.trainer.remaining import RemainingWork
from gpt2_hf.trainer.schedule import DecayByTime


@pytest.fixture
def args(tmp_path):
    return GPT2HFTrainingArguments(
        str(tmp_path), eval_strategy="steps", save_strategy="steps", metric_for_best_model="loss", use_cpu=True
    )


def state_at(step, epoch, max_steps=100):
    """A Trainer's state in the middle of a run."""
    state = TrainerState(global_step=step, max_steps=max_steps)
    state.epoch = epoch
    return state


@pytest.mark.parametrize(
    ("step", "epoch", "evaluates"), [(10, 0.5, False), (20, 1.0, True), (40, 2.0, True), (100, 4.7, True)]
)
def test_cadence_adds_epoch_ends_and_the_last_step(args, step, epoch, evaluates):
    """Evaluation and checkpoint at each epoch's end and at the end of the run, and only there."""
    control = CadenceCallback().on_step_end(args, state_at(step, epoch), TrainerControl())
    assert control.should_evaluate == control.should_save == evaluates


@pytest.mark.parametrize(("step", "epoch", "acts"), [(10, 0.5, False), (20, 1.0, True), (100, 4.7, True)])
def test_cadence_by_epochs_ends_with_the_run(args, step, epoch, acts):
    """A run that ends in the middle of an epoch is evaluated and saved there, as by the Trainer."""
    args.eval_strategy = args.save_strategy = "epoch"
    control = CadenceCallback().on_step_end(args, state_at(step, epoch), TrainerControl())
    assert control.should_evaluate == control.should_save == acts


def test_cadence_respects_other_strategies(args):
    """With eval_strategy or save_strategy "no", nothing is added."""
    args.eval_strategy, args.save_strategy = "no", "no"
    control = CadenceCallback().on_step_end(args, state_at(20, 1.0), TrainerControl())
    assert not control.should_evaluate and not control.should_save


class FixedWatch(Stopwatch):
    """A stopwatch that shows what the test says."""

    now = 0.0

    @property
    def elapsed(self):
        return self.now


def run_out_of_budget(args, step_seconds, **estimates):
    """Steps of 5 s, or as told by their number, in a budget of 100 s; the budget and the control at its end."""
    watch = FixedWatch()
    budget = TimeBudgetCallback(100 / 3600, watch, lambda: RemainingWork(**estimates))
    stop = StopCallback(budget, SignalWatch(), lambda: False)
    state, control = state_at(0, 0.0), TrainerControl()
    budget.on_train_begin(args, state, control)
    while not control.should_training_stop:
        budget.on_step_begin(args, state, control)
        state.global_step += 1
        watch.now += step_seconds.get(state.global_step, 5.0)
        budget.on_step_end(args, state, control)
        control = stop.on_step_end(args, state, control)
    assert control.should_save and control.should_log
    assert budget.expired and budget.checkpoint_names() == ["checkpoint_time_limit"]
    return budget, control


CLOSING = {"closing": 6.0, "checkpoint": 3.0}


@pytest.mark.parametrize("step_seconds", [{}, {1: 30.0}, {5: 30.0}])
def test_budget_stops_while_the_rest_still_fits(args, step_seconds):
    """The last step is the one after which another step and the closing work would not fit any more.

    Also where one step took much longer than all others.
    """
    budget, control = run_out_of_budget(args, step_seconds, **CLOSING, evaluation=5.0, test=6.0)
    # 100 s − 1.15 × (6 + 6 + 5 + 3) s to close, test, evaluate and save − 3 s leaving − 5 s for the next step
    assert 65 <= budget.watch.now <= 70
    assert control.should_evaluate and not budget.skipped_evaluation


@pytest.mark.parametrize(
    ("optional", "earliest", "evaluates"),
    [
        ({"evaluation": 5.0, "test": 90.0}, 75, True),  # 100 − 1.15 × 14 − 3 − 5
        ({"evaluation": 90.0, "test": 1.0}, 80, False),  # 100 − 1.15 × 9 − 3 − 5
        ({"evaluation": math.inf, "test": math.inf}, 80, False),
    ],
)
def test_budget_is_for_training_where_an_evaluation_takes_longer(args, optional, earliest, evaluates):
    """What did not fit when its time became known keeps no time from the steps."""
    budget, control = run_out_of_budget(args, {}, **CLOSING, **optional)
    assert earliest - 5 < budget.watch.now <= earliest + 5
    assert control.should_evaluate == evaluates == (not budget.skipped_evaluation)


def test_a_budget_says_what_it_ended_and_left_out():
    """Also where it is used up at the last step, after which nothing goes on."""
    budget = TimeBudgetCallback(1.0, FixedWatch(), lambda: RemainingWork(evaluation=5000.0))
    assert budget.end_lines(7) == []
    budget.stop(state_at(7, 0.1), TrainerControl())
    left_out = "no time was left for an evaluation"
    assert budget.end_lines(7) == ["time budget of 1 h reached at step 7", left_out]
    budget.stop(state_at(100, 1.0), TrainerControl())
    assert budget.end_lines(100) == [left_out]
    budget.remaining = lambda: RemainingWork(checkpoint=5000.0)  # of a run that is not evaluated
    budget.stop(state_at(100, 1.0), TrainerControl())
    assert budget.end_lines(100) == []


def test_after_a_signal_nothing_waits_for_the_end_of_the_epoch(args):
    """The Trainer takes it for the end of one, and asks for what a strategy by epochs would do there."""
    signals, control = SignalWatch(), TrainerControl()
    stop = StopCallback(TimeBudgetCallback(None, FixedWatch(), RemainingWork), signals, lambda: False)
    signals.received = signal.SIGTERM
    stop.on_step_end(args, state_at(3, 0.5), control)
    assert control.should_save and control.should_training_stop
    control.should_evaluate = control.should_log = True
    stop.on_epoch_end(args, state_at(3, 0.5), control)
    assert not (control.should_evaluate or control.should_save or control.should_log)


def test_budget_counts_earlier_invocations():
    """The time of all invocations is kept in the checkpoint."""
    first = TimeBudgetCallback(None, FixedWatch(), RemainingWork)
    first.watch.now = 50.0
    state = state_at(5, 0.5)
    state.stateful_callbacks["TimeBudgetCallback"] = first.state()
    second = TimeBudgetCallback(None, FixedWatch(), RemainingWork)
    second.restore(state)
    second.watch.now = 10.0
    assert second.total_seconds == 60.0


@pytest.mark.parametrize(("age", "counted"), [(0.5, 0.5), (9.0, 9.0), (40.0, 0.0)])
def test_the_start_of_the_process_counts_but_not_what_it_was_before(monkeypatch, age, counted):
    """The import of packages does; the time of a shell that became this process does not."""
    process = SimpleNamespace(create_time=lambda: time.time() - age)
    monkeypatch.setattr(stopwatch, "own_process", lambda: process)
    assert Stopwatch().age_at_start == pytest.approx(counted, abs=0.1)


def test_a_stopwatch_measures_parts():
    """Their sum, and the longest; of what was never measured nothing is known."""
    watch = Stopwatch()
    with watch.measure("part"):
        pass
    with watch.measure("part"):
        pass
    assert watch.total["part"] >= watch.longest("part") > 0
    assert watch.longest("other") is None and watch.median("part") is None


def test_a_single_exception_says_nothing_of_the_next_time():
    """A compilation, or a process that was suspended; two of them are no exception any more."""
    watch = Stopwatch()
    for seconds in (60.0, 1.0, 2.0, 1.5):
        watch.add("step", seconds)
    assert (watch.longest("step"), watch.median("step")) == (2.0, 1.75)
    watch.add("step", 50.0)
    assert watch.longest("step") == 50.0
    for _ in range(100):
        watch.add("step", 3.0)
    assert watch.longest("step") == 3.0


def make_optimizer():
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), math.nan)
    return weight, torch.optim.AdamW([weight], lr=0.1, fused=True)


def test_guard_stops_before_the_step_on_a_cpu():
    """A gradient norm that is not finite raises at once, naming the step and the remedies."""
    _, optimizer = make_optimizer()
    with pytest.raises(TrainingDivergedError, match=r"step 7: the gradient norm is nan.*lower --learning_rate"):
        NonFiniteGuard().observe(torch.tensor(math.nan), optimizer, step=7, uses_scaler=False)


def test_guard_skips_bad_steps_without_asking_the_host():
    """As on an accelerator: the optimizer leaves the weights alone, and the first bad step is reported later."""
    weight, optimizer = make_optimizer()
    guard = NonFiniteGuard(deferred=True)
    guard.observe(torch.tensor(math.nan), optimizer, step=7, uses_scaler=False)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))
    weight.grad = torch.ones(3)
    guard.observe(torch.tensor(1.0), optimizer, step=8, uses_scaler=False)
    optimizer.step()
    assert not torch.equal(weight.detach(), torch.ones(3)) and torch.isfinite(weight).all()
    with pytest.raises(TrainingDivergedError, match="step 7"):
        guard.check()


@pytest.mark.parametrize("event", ["should_log", "should_evaluate", "should_save"])
def test_guard_asks_the_device_when_numbers_are_read_anyway(event, tmp_path, monkeypatch):
    """Not in between: the host would wait. A run without logs is asked now and then."""
    args, guard, asked = TrainingArguments(str(tmp_path), use_cpu=True), NonFiniteGuard(deferred=True), []
    check = NonFiniteGuard.check
    monkeypatch.setattr(NonFiniteGuard, "check", lambda self: asked.append(len(steps)) or check(self))
    steps = []
    for step in range(1, 1300):
        control = TrainerControl(**{event: step == 200})
        guard.on_step_end(args, TrainerState(global_step=step, max_steps=1500), control)
        steps.append(step)
    assert asked == [199, 699, 1199]


@pytest.mark.parametrize(("last_step", "stops"), [(7, False), (9, True)])
def test_guard_asks_at_the_end(last_step, stops, tmp_path):
    """Of a run without logs, evaluations and checkpoints too, and of one that is stopped."""
    args, guard = TrainingArguments(str(tmp_path), use_cpu=True), NonFiniteGuard(deferred=True)
    guard.observe(torch.tensor(math.nan), make_optimizer()[1], step=7, uses_scaler=False)
    state = TrainerState(global_step=7, max_steps=last_step)
    with pytest.raises(TrainingDivergedError, match="step 7"):
        guard.on_step_end(args, state, TrainerControl(should_training_stop=stops))


def test_guard_leaves_ordinary_fp16_overflows_to_the_scaler():
    """With a loss scaler an infinite norm is no divergence; a vanished scale is."""
    guard = NonFiniteGuard()
    guard.observe(torch.tensor(math.inf), None, step=1, uses_scaler=True)
    guard.check()
    guard.check_scale(1024.0, step=1)
    with pytest.raises(TrainingDivergedError):
        guard.check_scale(1e-6, step=1)


def test_guard_does_not_save_weights_that_are_not_finite():
    """An update can overflow although the gradient was finite."""
    model = torch.nn.Linear(2, 2)
    model.quantised = torch.nn.Parameter(torch.zeros(2).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(NotImplementedError):
        torch.isfinite(model.quantised)  # torch cannot tell, as of quantised weights; it is not trained
    NonFiniteGuard().check_weights(model, step=3)
    model.weight.data[0, 0] = math.inf
    with pytest.raises(TrainingDivergedError, match="step 3"):
        NonFiniteGuard().check_weights(model, step=3)


def test_loss_spikes_are_noticed_and_noise_is_not():
    """A smooth descent and its noise pass; a jump of a nat is a spike, and so is the next one."""
    spikes = LossSpikes()
    smooth = [5.0 - 0.05 * i + 0.02 * (-1) ** i for i in range(40)]
    assert all(spikes.jump(loss) is None for loss in smooth)
    assert spikes.jump(4.5) == pytest.approx(4.5 - smooth[-1]) and spikes.jump(4.6) is not None
    assert spikes.jump(3.0) is None
    assert spikes.jump(math.nan) is None and spikes.jump(4.5) == pytest.approx(1.5)  # one of fp16 is left out


def test_the_watch_for_spikes_goes_on_where_it_was():
    """Under the names that it has in checkpoints."""
    spikes, resumed = LossSpikes(), LossSpikes()
    for loss in (5.0, 4.9, 4.85, 4.75):
        assert spikes.jump(loss) is None
    state = spikes.state_dict()
    assert state.keys() == {"ordinary", "_squared_step", "_seen"}
    resumed.load_state_dict(state)
    following = (4.7, 6.0, 4.65)
    jumps = [resumed.jump(loss) for loss in following]
    assert jumps == [spikes.jump(loss) for loss in following] and jumps[1] == pytest.approx(1.3)


def test_schedule_by_time_follows_the_clock():
    """Warmup by steps, then a cosine over the time that is left; the end of the steps ends it too."""
    now = 0.0
    factor = DecayByTime("cosine", warmup_steps=10, total_steps=1000, time_share=lambda: now)
    assert factor(5) == 0.5
    now = 0.2
    assert factor(10) == 1.0
    now = 0.6
    assert factor(20) == pytest.approx(0.5)
    now = 1.0
    assert factor(30) == pytest.approx(0.0)
    now = 0.6
    assert factor(1000) == pytest.approx(0.0)


def test_a_linear_schedule_by_time():
    """A straight line from the peak to 0."""
    shares = iter((0.2, 0.4, 0.6, 1.0))
    factor = DecayByTime("linear", warmup_steps=10, total_steps=1000, time_share=lambda: next(shares))
    assert [factor(step) for step in range(10, 14)] == pytest.approx([1.0, 0.75, 0.5, 0.0])
    assert [factor(5), factor.progress] == [0.5, 1.0]


def test_schedule_by_time_is_resumed_where_it_was():
    """After an interruption the rate does not jump: it goes down from where it was to 0 in the new time."""
    factor = DecayByTime("cosine", warmup_steps=10, total_steps=1000, time_share=lambda: now, progress=0.5)
    now = 0.1
    assert factor(400) == pytest.approx(0.5)
    now = 0.55
    assert factor(410) == pytest.approx(0.5 * (1 + math.cos(0.75 * math.pi)))
    now = 1.0
    assert factor(420) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("progress", "expired", "has_ended"),
    [(1.0, False, True), (0.95, True, True), (0.95, False, False), (0.5, True, False), (0.0, False, False)],
)
def test_a_checkpoint_tells_whether_its_schedule_has_ended(tmp_path, progress, expired, has_ended):
    """By its steps, or by the clock shortly before 0; no name in the folder is needed for it."""
    budget = TimeBudgetCallback(1.0, FixedWatch(), RemainingWork)
    budget.schedule = DecayByTime("cosine", 0, 10, lambda: 0.0, progress)
    budget.expired = expired
    state = TrainerState(stateful_callbacks={"TimeBudgetCallback": budget.state()})
    assert TimeBudgetCallback.schedule_ended_at(tmp_path / "checkpoint-5", state) == has_ended
    assert not TimeBudgetCallback.schedule_ended_at(tmp_path / "checkpoint-5", TrainerState(stateful_callbacks={}))


def progress_at(step, logs, capsys, max_hours=None):
    """What the terminal shows for a log, an hour into a run that began at step 0 after 100 s."""
    watch = FixedWatch()
    watch.now = 100.0
    progress = ProgressCallback(watch, max_hours)
    state = state_at(0, 0.0, max_steps=1000)
    arguments = TrainingArguments("unused", use_cpu=True, disable_tqdm=True)
    progress.on_train_begin(arguments, state, TrainerControl())
    state.global_step, watch.now = step, 3600.0
    progress.on_log(arguments, state, TrainerControl(), logs=logs)
    return capsys.readouterr().out


def test_one_line_per_log_has_numbers_and_clock(capsys):
    """Loss, speed, share of the peak, memory, elapsed, what the steps will still take, and the budget."""
    logs = {"loss": 3.5, "perplexity": 33.1, "tokens_per_second": 12345.6, "mfu": 0.41, "memory_gib": 2.06}
    line = progress_at(100, logs, capsys, max_hours=2.0)
    assert line == (
        "step 100/1,000: loss 3.5000, perplexity 33.10, 12,346 tokens/s, 41% of the device's peak, 2.1 GiB, "
        "1:00:00 elapsed, 8:45:00 to go, budget 1:00:00 left\n"
    )
    assert "budget" not in progress_at(100, logs, capsys)


def test_evaluations_have_no_clock_and_the_closing_summary_no_line(capsys):
    """A validation line says loss and perplexity; the Trainer's closing summary is not repeated."""
    line = progress_at(100, {"eval_loss": 3.0, "eval_perplexity": 20.09, "eval_tokens": 5000}, capsys, max_hours=2.0)
    assert line == "step 100/1,000: validation loss 3.0000, validation perplexity 20.09, 5,000 tokens\n"
    assert progress_at(100, {"train_runtime": 5.0, "train_loss": 3.0, "total_flos": 1.0}, capsys) == ""


def test_numbers_that_a_user_logs_are_shown(capsys):
    """In the line of their log, or in one of their own; the test score has its line in the job."""
    assert ": loss 3.5000, kl 0.25, 1:00:00 elapsed, " in progress_at(100, {"loss": 3.5, "kl": 0.25}, capsys)
    assert progress_at(100, {"kl": 0.25, "epoch": 0.5}, capsys) == "step 100/1,000: kl 0.25\n"
    assert progress_at(100, {"test_loss": 3.5, "epoch": 0.5}, capsys) == ""


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("loss", "train/loss"),
        ("eval_loss", "eval/loss"),
        ("test_perplexity", "test/perplexity"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("eval_runtime", "speed/evaluation_seconds"),
        ("my_metric", "train/my_metric"),
        ("eval_my_metric", "eval/my_metric"),
        ("train_runtime", None),
        ("train_accuracy", "train/train_accuracy"),
        ("eval_tokens", None),
        ("eval_samples_per_second", None),
        ("eval_model_preparation_time", None),
    ],
)
def test_tensorboard_tags(name, tag):
    """Groups that a person looks for; numbers that are the same at every point have no chart."""
    assert tag_of(name) == tag


@pytest.mark.parametrize("place", ["terminal", "notebook"])
def test_a_terminal_gets_a_bar_with_the_latest_numbers(capsys, monkeypatch, place):
    """There, and in a notebook, the numbers of the last log, speed, memory and budget stay in sight."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: place == "terminal")
    monkeypatch.setattr(progress_module, "is_in_notebook", lambda: place == "notebook")
    watch = FixedWatch()
    progress = ProgressCallback(watch, 2.0)
    state, arguments = state_at(10, 0.1, max_steps=1000), TrainingArguments("unused", use_cpu=True, disable_tqdm=False)
    progress.on_train_begin(arguments, state, TrainerControl())
    watch.now, state.global_step = 3600.0, 20
    logs = {"loss": 3.5, "perplexity": 33.1, "tokens_per_second": 12345.6, "memory_gib": 2.06, "learning_rate": 1e-3}
    progress.on_log(arguments, state, TrainerControl(), logs=logs)
    progress.on_step_end(arguments, state, TrainerControl())
    assert progress.training_bar.n == 20
    shown = str(progress.training_bar)
    progress.on_train_end(arguments, state, TrainerControl())
    for part in ("20/1000", "loss 3.5000, perplexity 33.10, 12,346 tokens/s, 2.1 GiB, budget 1:00:00 left"):
        assert part in shown, part
    assert "step 20/1,000: loss 3.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "hours", "speed"), [(1000, 2.0, 345.6), (18_360, 12.0, 12345.6), (600_000, 99.0, 8e5)]
)
@pytest.mark.parametrize("width", [80, 200])
def test_eighty_columns_keep_what_matters(monkeypatch, width, steps, hours, speed):
    """Loss, speed, time gone by, time to go and the budget fit; a wide terminal shows the other numbers too."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    watch = FixedWatch()
    progress = ProgressCallback(watch, hours)
    state, arguments = state_at(0, 0.1, max_steps=steps), TrainingArguments("unused", use_cpu=True, disable_tqdm=False)
    progress.on_train_begin(arguments, state, TrainerControl())
    bar = progress.training_bar
    bar.dynamic_ncols, bar.ncols = None, width
    bar.start_t -= hours * 1800
    watch.now, state.global_step = hours * 1800, steps // 2
    logs = {"loss": 3.5, "perplexity": 33.1, "tokens_per_second": speed, "mfu": 0.41, "memory_gib": 2.06}
    progress.on_log(arguments, state, TrainerControl(), logs=logs)
    progress.on_step_end(arguments, state, TrainerControl())
    shown = str(bar)
    progress.on_train_end(arguments, state, TrainerControl())
    assert len(shown) <= width and shown.endswith("left]"), shown
    left = f"{int(hours // 2)}:{'30' if hours % 2 else '00'}:00 left]"
    assert (
        "loss 3.5" in shown and re.search(r"tok(ens)?/s, ", shown) and left in shown.replace("2 days, 1:30", "49:30")
    )
    assert re.search(r"\[[\d:]+<[\d:]+, ", shown)
    assert ("perplexity 33.10" in shown and "41% of" in shown and "2.1 GiB" in shown) is (width == 200)
