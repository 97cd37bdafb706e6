"""A run that is given H hours has ended within H hours, by the real clock."""

import sys
import time

import pytest

from gpt2_hf.checkpoints import folders
from gpt2_hf.trainer.callbacks import StopCallback

from . import harness

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")


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
    """Three of 10 to 20 seconds, side by side: kept, and ended with a named checkpoint and an evaluation."""
    random = harness.seeded("budgets")
    harness.warm_up()
    runs = []
    for name in ("a", "b", "c"):
        folder, budget = tmp_path / name, random.uniform(10, 20)
        folder.mkdir()
        begin = time.monotonic()
        process = harness.start(command(tiny_options, folder, budget), folder / "log", prepare=slow_steps)
        runs.append((folder, budget, begin, process))
    seconds = {}
    try:
        while len(seconds) < len(runs):
            time.sleep(0.02)
            for folder, _, begin, process in runs:
                if folder not in seconds and not process.is_alive():
                    seconds[folder] = time.monotonic() - begin
                assert time.monotonic() - begin < 120, f"still running:\n{(folder / 'log').read_text()}"
    finally:
        for *_, process in runs:
            process.kill()
    for folder, budget, _, process in runs:
        assert process.exitcode == 0, (folder / "log").read_text()
        assert seconds[folder] < budget
        assert "checkpoint_time_limit" in folders.read_names(folder / "run")
        assert (folder / "run" / "eval_results.json").is_file()


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
