"""What processes agree on, they do without the accelerator's queue."""

import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from gpt2_hf.runtime import distributed

from ..trainer.processes import on_two


def test_who_waits_does_not_hold_the_accelerator(monkeypatch):
    """The first process may write a report for long; NCCL's watchdog would end those that wait for it."""
    calls = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_cpu_group", lambda world: "cpus")
    monkeypatch.setattr(dist, "barrier", lambda group=None: calls.append(group))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    distributed.leave()
    assert calls == ["cpus", "destroyed"]


def wait_for_a_slow_one(folder):
    """The second process needs longer than the timeout."""
    dist.init_process_group("gloo")
    distributed.barrier()
    distributed.set_timeout(0.5)
    with distributed.finished_together(60):
        time.sleep(1.5 * dist.get_rank())
    return dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=0.5)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")
def test_a_process_may_take_longer_than_the_timeout(tmp_path):
    """As one whose host has nothing in its cache: the other waits. Afterwards the timeout is the old one."""
    assert on_two(wait_for_a_slow_one, tmp_path) == [True, True]
