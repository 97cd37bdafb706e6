"""What processes agree on, they do without the accelerator's queue."""

import torch.distributed as dist

from gpt2_hf.runtime import distributed


def test_who_waits_does_not_hold_the_accelerator(monkeypatch):
    """The first process may write a report for long; NCCL's watchdog would end those that wait for it."""
    calls = []
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_cpu_group", lambda world: "cpus")
    monkeypatch.setattr(dist, "barrier", lambda group=None: calls.append(group))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    distributed.leave()
    assert calls == ["cpus", "destroyed"]
