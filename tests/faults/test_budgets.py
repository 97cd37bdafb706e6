"""A run that is given H hours has ended within H hours, by the real clock."""

import itertools
import time

import pytest

from gpt2_hf.checkpoints import folders
from gpt2_hf.trainer.callbacks import StopCallback

from ..conftest import needs_fork_server, read_json
from ..runs import history
from . import harness

pytestmark = needs_fork_server


# What the run of two processes has besides.
TWO = ("--schedule_by_time", "--eval_every", "100", "--save_every", "5", "--batch_size", "4", "--ddp_backend", "gloo")


def command(tiny_options, folder, seconds, *options):
    """More work than the budget has time for."""
    argv = ["train", *tiny_options, "--checkpoint_dir", str(folder / "run"), "--max_epochs", "100000"]
    return [*argv, "--max_training_hours", str(seconds / 3600), *options]


def slow_steps():
    """A twentieth of a second more for each, so that runs side by side do not fight for the cores."""
    end = StopCallback.on_step_end

    def slowly(self, *args, **kwargs):
        time.sleep(0.05)
        return end(self, *args, **kwargs)

    StopCallback.on_step_end = slowly


def test_random_budgets_are_kept(tiny_options, tmp_path):
    """Four of 10 to 20 seconds, side by side: kept, and ended with a named checkpoint and an evaluation.

    Two have a schedule that follows the clock. The learning rate of the first has come down to nearly 0 by then, and
    with more hours nothing is trained; the second is one of two processes, which stop at the same step.
    """
    random = harness.seeded("budgets")
    harness.warm_up()
    runs = []
    by_time = tmp_path / "by_time"
    for folder in (tmp_path / "a", tmp_path / "b", by_time):
        folder.mkdir()
        budget, options = (20, ["--schedule_by_time"]) if folder == by_time else (random.uniform(10, 20), [])
        begin = time.monotonic()
        argv = command(tiny_options, folder, budget, *options)
        runs.append((folder, budget, begin, [harness.start(argv, folder / "log", prepare=slow_steps, draws=True)]))
    two, begin = tmp_path / "two", time.monotonic()
    two.mkdir()
    argv = command(tiny_options, two, 16, *TWO)  # so that it does not end together with the longest
    runs.append((two, 16, begin, harness.start_ranks(argv, [two / "log", two / "second_log"], slow_steps)))
    seconds = {}
    while len(seconds) < len(runs):
        time.sleep(0.02)
        for folder, _, begin, processes in runs:
            if folder not in seconds and not any(process.is_alive() for process in processes):
                seconds[folder] = time.monotonic() - begin
            assert time.monotonic() - begin < 120, f"still running:\n{(folder / 'log').read_text()}"
    for folder, budget, _, processes in runs:
        assert not any(process.exitcode for process in processes), (folder / "log").read_text()
        assert seconds[folder] < budget
        assert "checkpoint_time_limit" in folders.read_names(folder / "run")
        assert (folder / "run" / "eval_results.json").is_file()
        reached = read_json(folder / "run" / "trainer_state.json")["global_step"]
        assert folders.resolve("checkpoint_time_limit", folder / "run").name == f"checkpoint-{reached}"

    run, printed = by_time / "run", (by_time / "log").read_text()
    assert (run / "test_results.json").is_file()
    assert "Elapsed: 0.0" in printed and "| Remaining: 0.0" in printed
    before = history(run)
    rates = [entry["learning_rate"] for entry in before if "learning_rate" in entry]
    assert max(rates) > 2e-3 and rates[-1] < 0.1 * max(rates)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(rates[2:]))
    more = command(tiny_options, by_time, 24 * 3600, "--schedule_by_time", "--resume_from", "latest")
    assert harness.run(more, by_time / "again") == 0
    printed = (by_time / "again").read_text()
    assert "has reached the end of its wall-clock-based schedule" in printed
    assert "--model_name_or_path" in printed and history(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("case", range(20))
def test_twenty_random_budgets_are_kept(tiny_options, tmp_path, case):
    """The same with longer ones and another cadence."""
    random = harness.seeded("budget")
    budget, every = random.uniform(10, 40), str(random.choice([3, 50, 1000]))
    argv = command(tiny_options, tmp_path, budget, "--eval_every", every, "--save_every", every)
    harness.warm_up()
    begin = time.monotonic()
    assert harness.run(argv, tmp_path / "log") == 0
    assert time.monotonic() - begin < budget
