"""When a run evaluates, saves and stops: each callback on its own."""

import math

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from gpt2_hf.callbacks import (
    CadenceCallback,
    LossSpikes,
    NonFiniteGuard,
    StopCallback,
    TimeBudgetCallback,
)
from gpt2_hf.callbacks.cadence import is_new_best
from gpt2_hf.errors import TrainingDivergedError
from gpt2_hf.schedule import cosine_by_time
from gpt2_hf.stop_signals import SignalWatch
from gpt2_hf.stopwatch import Stopwatch, process_age


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(
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


def test_cadence_respects_other_strategies(args):
    """With eval_strategy or save_strategy "no", nothing is added."""
    args.eval_strategy, args.save_strategy = "no", "no"
    control = CadenceCallback().on_step_end(args, state_at(20, 1.0), TrainerControl())
    assert not control.should_evaluate and not control.should_save


def test_a_new_best_is_saved(args):
    """Better than all before is saved; equal, worse and NaN are not."""
    state = state_at(10, 0.5)
    assert is_new_best(args, state, {"eval_loss": 3.0})
    state.best_metric = 3.0
    assert is_new_best(args, state, {"eval_loss": 2.9})
    for loss in (3.0, 3.1, math.nan):
        assert not is_new_best(args, state, {"eval_loss": loss})


class FixedWatch(Stopwatch):
    """A stopwatch that shows what the test says."""

    now = 0.0

    @property
    def elapsed(self):
        return self.now


def test_budget_stops_while_the_rest_still_fits(args):
    """The last step is the one after which another step and the closing work would not fit any more."""
    watch = FixedWatch()
    budget = TimeBudgetCallback(100 / 3600, watch, lambda: 12.0, lambda: 5.0, lambda: 3.0)
    stop = StopCallback(budget, SignalWatch())
    state, control = state_at(0, 0.0), TrainerControl()
    budget.on_train_begin(args, state, control)
    while not control.should_training_stop:
        budget.on_step_begin(args, state, control)
        watch.now += 5.0
        state.global_step += 1
        budget.on_step_end(args, state, control)
        control = stop.on_step_end(args, state, control)
    # 100 s − 1.15 × (12 + 5 + 3) s to close, evaluate and save − 3 s leaving − 5 s for the next step
    assert 65 <= watch.now <= 70
    assert control.should_save and control.should_evaluate and control.should_log
    assert budget.expired and budget.checkpoint_names() == ["checkpoint_time_limit"]


def test_budget_counts_earlier_invocations(args):
    """The time of all invocations is kept in the checkpoint."""
    first = TimeBudgetCallback(None, FixedWatch())
    first.watch.now = 50.0
    state = state_at(5, 0.5)
    state.stateful_callbacks["TimeBudgetCallback"] = first.state()
    second = TimeBudgetCallback(None, FixedWatch())
    second.on_train_begin(args, state, TrainerControl())
    second.watch.now = 10.0
    assert second.total_seconds == 60.0


def test_stopwatch_includes_the_start_of_the_process():
    """The budget counts from the start of the process, not from the import of this package."""
    watch = Stopwatch()
    assert 0 < watch.age_at_start <= process_age()
    with watch.measure("part"):
        pass
    with watch.measure("part"):
        pass
    assert watch.total["part"] >= watch.longest["part"] > 0


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


def test_schedule_by_time_follows_the_clock():
    """Warmup by steps, then a cosine over the time that is left; the end of the steps ends it too."""
    now = 0.0
    factor = cosine_by_time(warmup_steps=10, total_steps=1000, time_share=lambda: now)
    assert factor(5) == 0.5
    now = 0.2
    assert factor(10) == 1.0
    now = 0.6
    assert factor(20) == pytest.approx(0.5)
    now = 1.0
    assert factor(30) == pytest.approx(0.0)
    now = 0.6
    assert factor(1000) == pytest.approx(0.0)
