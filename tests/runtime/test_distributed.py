"""What processes agree on, they do without the accelerator's queue."""

import time

import pytest
import torch.distributed as dist

from gpt2_hf.errors import UserError
from gpt2_hf.runtime import distributed

from ..conftest import needs_fork_server
from ..trainer.processes import on_two


def test_who_waits_does_not_hold_the_accelerator(monkeypatch):
    """The first process may write a report for long; NCCL's watchdog would end those that wait for it."""
    calls = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_cpu_group", lambda world: "cpus")
    monkeypatch.setattr(dist, "barrier", lambda group=None: calls.append(group))
    distributed.barrier()
    assert calls == ["cpus"]


def wait_for_a_slow_one(folder):
    """The second process needs longer than the timeout, which is set again the first time; whether each has waited."""
    dist.init_process_group("gloo")
    distributed.barrier()
    waited = []
    for last, seconds in ((60, 1.0), (0.5, 2.5)):
        distributed.set_timeout(0.5)
        distributed.set_timeout(last)
        time.sleep(seconds * dist.get_rank())
        try:
            distributed.barrier()
        except RuntimeError:
            waited.append(False)
        else:
            waited.append(True)
    return waited


@pytest.mark.distributed
@needs_fork_server
def test_a_process_may_take_longer_than_the_timeout(tmp_path):
    """As one whose host has nothing in its cache: the other waits for as long as was said last, and no longer."""
    first, second = on_two(wait_for_a_slow_one, tmp_path)
    assert first == [True, False] and second[0]


def test_a_network_that_does_not_join_the_hosts_is_one_line(monkeypatch):
    """Beside NCCL the CPUs need one of their own: the variable that names it, and not that a process has died."""

    def refuse(**options):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:144] Connection refused")

    monkeypatch.setattr(dist, "get_backend", lambda world: "nccl")
    monkeypatch.setattr(dist, "new_group", refuse)
    with pytest.raises(UserError, match=r"Connection refused.*GLOO_SOCKET_IFNAME=<interface>"):
        distributed._cpu_group(object())
