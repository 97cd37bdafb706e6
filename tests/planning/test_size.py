"""The rule of `--size auto` is a pure function of measured numbers."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from gpt2_hf.planning.size import (
    LADDER,
    RULE,
    Candidate,
    Measured,
    Size,
    Task,
    best,
    candidates,
    decay_for,
    dropout_for,
)

TASK = Task(
    text_tokens=2_400_000,
    validation_tokens=250_000,
    test_tokens=290_000,
    seconds=1800.0,
    most_evaluations=5,
    seconds_per_evaluation=2.0,
    tokens_per_step=2048,
    most_epochs=20,
)
EMBEDDINGS = 27_000


def machine(operations_per_second: float) -> Callable[[Size], Measured]:
    """How fast each size is on a machine that does so many operations with the weights."""

    def measure(size: Size) -> Measured:
        parameters = size.block_parameters + EMBEDDINGS * size.d_model
        return Measured(parameters, operations_per_second / (6 * parameters))

    return measure


def chosen(operations_per_second: float, task: Task = TASK) -> Candidate:
    """The choice for a machine and a task."""
    return best(candidates(LADDER, machine(operations_per_second), lambda: task))


def test_sizes_grow_by_about_two():
    """Each size of the ladder has more weights in its blocks than the one before, never ten times as many."""
    counts = [size.block_parameters for size in LADDER]
    assert all(1.2 < after / before < 6 for before, after in itertools.pairwise(counts))
    assert all(size.d_model % 64 == 0 for size in LADDER)


def test_the_same_text_again_is_worth_less_and_less():
    """All of a first reading counts, half a reading half; the hundredth adds next to nothing."""
    assert RULE.fresh(1e6, 2e6) == 1e6 and RULE.fresh(2e6, 2e6) == 2e6
    worth = [RULE.fresh(epochs * 1e6, 1e6) for epochs in (1, 2, 3, 50, 100)]
    assert worth == sorted(worth)
    assert 1.5e6 < worth[1] < 2e6 and worth[2] - worth[1] < worth[1] - worth[0]
    assert worth[4] <= (1 + RULE.repeats) * 1e6
    assert RULE.fresh(RULE.most_epochs * 1e6, 1e6) == pytest.approx((1 + 0.99 * RULE.repeats) * 1e6)


def test_a_larger_model_and_more_text_are_expected_to_do_better():
    """The loss falls with either."""
    assert RULE.loss(2e6, 1e7, 1e7) < RULE.loss(1e6, 1e7, 1e7)
    assert RULE.loss(1e6, 2e7, 2e7) < RULE.loss(1e6, 1e7, 1e7) == RULE.loss(1e6, 1e7, 3e7)


def test_evaluations_take_their_part_of_the_time():
    """Time to tokens and back; with nothing to evaluate all of it is for training."""
    tokens = TASK.tokens_in_time(10_000)
    assert TASK.seconds_for(tokens, 10_000) == pytest.approx(1800)
    assert tokens < 0.95 * 1800 * 10_000
    alone = replace(TASK, validation_tokens=0, test_tokens=0)
    assert alone.tokens_in_time(10_000) == pytest.approx(1800 * 10_000)
    assert replace(TASK, seconds=1.0).tokens_in_time(10_000) == 0


def test_evaluations_that_take_long_are_fewer():
    """Five in half an hour; three in as many minutes, which leaves more for training than five would."""
    assert TASK.evaluations(10_000) == 5
    short = replace(TASK, seconds=180.0)
    assert short.evaluations(10_000) == 3
    assert replace(short, most_evaluations=2).evaluations(10_000) == 2
    assert replace(TASK, validation_tokens=0).evaluations(10_000) == 5
    small = replace(short, validation_tokens=2_000)
    assert small.evaluations(10_000) == 5 and small.tokens_in_time(10_000) > short.tokens_in_time(10_000)


def test_long_runs_are_evaluated_each_half_hour_where_that_is_cheap():
    """Never for more than a tenth of the time; a text that is worn out before has no more of them."""
    assert replace(TASK, seconds=9000.0).evaluations(10_000) == 5
    half_a_day = replace(TASK, seconds=43_200.0, most_epochs=1e9)
    assert half_a_day.evaluations(10_000) == 24
    large = replace(half_a_day, text_tokens=10**12, validation_tokens=25_000_000, test_tokens=0)
    assert large.evaluations(20_000) == 10
    assert 0.9 * 43_200 < large.tokens_in_time(20_000) / 20_000 < 43_200
    assert replace(half_a_day, most_epochs=20).evaluations(10_000) == 5


def test_more_time_and_faster_machines_have_larger_models():
    """Over four powers of ten, and never the other way round."""
    sizes = [chosen(10**power, replace(TASK, most_epochs=1e9)).size for power in (10, 11, 12, 13, 14)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2] < sizes[4]
    by_time = [chosen(1e11, replace(TASK, seconds=seconds)).size for seconds in (180, 600, 1800, 36_000)]
    assert by_time == sorted(by_time) and by_time[0] < by_time[-1]


def test_the_choice_is_the_lowest_loss_and_its_neighbours_were_looked_at():
    """Nothing that was measured is better, and one size beyond it was measured."""
    found = candidates(LADDER, machine(1e11), lambda: TASK)
    choice = best(found)
    assert all(choice.loss <= each.loss for each in found)
    assert found[-3] is choice and found[-1].loss > choice.loss
    assert choice.epochs == pytest.approx(choice.tokens / TASK.text_tokens)


def test_what_does_not_fit_into_the_memory_is_not_chosen():
    """The largest that does is, and larger ones are not tried."""
    measure, tried = machine(1e13), []

    def limited(size: Size) -> Measured | None:
        tried.append(size)
        return measure(size) if size.d_model <= 256 else None

    assert best(candidates(LADDER, limited, lambda: TASK)).size == Size(256, 6)
    assert tried[-1].d_model == 320


def test_too_little_time_leaves_nothing_to_choose():
    """Fewer than a hundred steps of the smallest size are no training."""
    assert candidates(LADDER, machine(1e8), lambda: TASK) == []
    assert candidates(LADDER, machine(1e11), lambda: replace(TASK, seconds=20)) == []


def test_a_worn_out_text_is_not_read_on():
    """A day for a short text is not used up."""
    task = replace(TASK, text_tokens=50_000, validation_tokens=3000, test_tokens=0, seconds=86_400)
    assert chosen(1e11, task).epochs == pytest.approx(TASK.most_epochs)


def test_measuring_takes_time_from_training():
    """What is left is asked anew for each size."""
    left = iter(range(1800, 0, -300))
    found = candidates(LADDER, machine(1e11), lambda: replace(TASK, seconds=next(left)))
    assert found[1].tokens < replace(TASK, seconds=1800).tokens_in_time(found[1].measured.tokens_per_second)


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "decay"),
    [(10, 47, 2.0), (10, 581, 0.4), (5.5, 1183, 0.25), (2.9, 47, 0.1), (10, 5, 2.0), (10, 100_000, 0.1)],
)
def test_what_is_read_often_is_forgotten_faster(epochs, steps_per_epoch, decay):
    """The decays that were good in benchmarks/LOG.md, and no others than were tried."""
    assert decay_for(epochs, steps_per_epoch, 0.01) == pytest.approx(decay, abs=0.05)
    if decay > 0.1:
        assert decay_for(epochs, steps_per_epoch, 0.005) == pytest.approx(2 * decay, rel=0.2)


def test_dropout_is_for_what_is_read_often():
    """Below it costs more than it brings."""
    assert (dropout_for(7.9), dropout_for(8.0)) == (0.0, 0.1)
