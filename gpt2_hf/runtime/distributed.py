"""The few things that processes of one run must agree on."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError, first_line

_T = TypeVar("_T")

# How long processes wait for one that tokenises, writes or publishes alone; `--ddp_timeout` is for training.
PATIENCE_SECONDS = 24 * 3600.0


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_index() -> int:
    """The number of this process among those of the run; 0 is the first."""
    return dist.get_rank() if is_distributed() else 0


def num_processes() -> int:
    """How many processes train or evaluate together."""
    return dist.get_world_size() if is_distributed() else 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The sums of a tensor over all processes, in place; every process must ask."""
    if is_distributed():
        dist.all_reduce(values)
    return values


def sum_dtype(device: torch.device) -> torch.dtype:
    """That of a sum over many numbers, which must not depend on their order: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def any_process(flag: bool) -> bool:
    """Whether the flag is set on at least one process; every process must ask."""
    return bool(largest_of_each(flag)[0])


def largest_of_each(*values: float) -> tuple[float, ...]:
    """For each value the largest that any process has, in one exchange; every process must ask."""
    if not is_distributed():
        return values
    shared = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=_cpu_group(dist.group.WORLD))
    return tuple(shared.tolist())


@functools.lru_cache(maxsize=1)
def _cpu_group(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """All processes, talking between CPUs: a question to the others never waits for the accelerator's queue."""
    if dist.get_backend(world) == dist.Backend.GLOO:
        return world
    try:
        return dist.new_group(backend=dist.Backend.GLOO)
    except RuntimeError as error:
        raise UserError(
            f"the processes cannot reach each other between CPUs ({first_line(error)}); if all of them are running, "
            "name the network that joins the hosts: export GLOO_SOCKET_IFNAME=<interface>"
        ) from error


def decided_by_first(decide: Callable[[], _T]) -> _T:
    """What the first process decides, on all processes; every process must ask.

    Raises:
        UserError: on all processes, if the first one raises it.
    """
    if not is_distributed():
        return decide()
    outcome: list[Any] = [None, None]
    if process_index() == 0:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=_cpu_group(dist.group.WORLD))
    decided, refusal = outcome
    if refusal is not None:
        raise refusal
    return decided


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.barrier(group=_cpu_group(dist.group.WORLD))


def set_timeout(seconds: float) -> None:
    """How long a process waits for the others before it gives up; transformers sets it on accelerators alone."""
    if is_distributed():
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), _cpu_group(dist.group.WORLD))


def is_lost_connection(error: Exception) -> bool:
    """Whether a process could not reach another one of the run, because it is gone or the network is."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave() -> None:
    """Take leave of the other processes, at the very end of a command; who calls `train` may have more to do."""
    if is_distributed():
        dist.destroy_process_group()
