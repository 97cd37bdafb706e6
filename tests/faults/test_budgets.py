"""A run that is given H hours has ended within H hours, by the real clock."""

import itertools
import sys
import time

import pytest

from gpt2_hf.checkpoints import folders

from . import harness

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")


def run_within(tiny_options, tmp_path, seconds, *options):
    """Run with a budget; the wall time from start to exit."""
    hours = str(seconds / 3600)
    harness.warm_up()
    argv = ["train", *tiny_options, "--checkpoint_dir", str(tmp_path / "run"), "--max_epochs", "100000"]
    begin = time.monotonic()
    assert harness.run([*argv, "--max_training_hours", hours, *options], tmp_path / "log") == 0
    return time.monotonic() - begin


@pytest.mark.parametrize("case", range(3))
def test_random_budgets_are_kept(tiny_options, tmp_path, case):
    """Budgets of 10 to 20 seconds: kept, used, and ended with a named checkpoint and an evaluation."""
    budget = harness.seeded("budget").uniform(10, 20)
    assert run_within(tiny_options, tmp_path, budget) < budget
    assert "checkpoint_time_limit" in folders.read_names(tmp_path / "run")
    assert (tmp_path / "run" / "eval_results.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("case", range(20))
def test_twenty_random_budgets_are_kept(tiny_options, tmp_path, case):
    """The same with longer ones and another cadence."""
    random = harness.seeded("budget")
    budget, every = random.uniform(10, 40), str(random.choice([3, 50, 1000]))
    assert run_within(tiny_options, tmp_path, budget, "--eval_every", every, "--save_every", every) < budget


def test_the_schedule_can_follow_the_budget(tiny_options, tmp_path):
    """--schedule_by_time: the learning rate has come down to nearly 0 when the budget is used up."""
    from ..job.test_main_job import history

    budget = 20
    assert run_within(tiny_options, tmp_path, budget, "--schedule_by_time", "--eval_every", "500") < budget
    rates = [entry["learning_rate"] for entry in history(tmp_path / "run") if "learning_rate" in entry]
    assert max(rates) > 2e-3 and rates[-1] < 0.1 * max(rates)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(rates[2:]))

    # More hours would be trained at a rate of 0.
    again = ["train", *tiny_options, "--checkpoint_dir", str(tmp_path / "run"), "--max_epochs", "100000"]
    again += ["--schedule_by_time", "--max_training_hours", "1", "--resume_from", "latest"]
    before = history(tmp_path / "run")
    assert harness.run(again, tmp_path / "again") == 0
    assert "has used up its time" in (tmp_path / "again").read_text()
    assert "--model_name_or_path" in (tmp_path / "again").read_text() and history(tmp_path / "run") == before
