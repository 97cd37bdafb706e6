"""The few things that processes of one run must agree on."""

import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..errors import UserError

_T = TypeVar("_T")


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
    return dist.new_group(backend=dist.Backend.GLOO)


def decided_by_first(decide: Callable[[], _T]) -> _T:
    """What the first process decides, on all processes; every process must ask.

    Raises:
        UserError: on all processes, if the first one raises it.
    """
    if not is_distributed():
        return decide()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = decide()
        except UserError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=_cpu_group(dist.group.WORLD))
    decided, error = outcome
    if error is not None:
        raise error
    return decided  # type: ignore[no-any-return]


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.barrier()


def set_timeout(seconds: float) -> None:
    """How long a process waits for the others before it gives up; transformers sets it on accelerators alone."""
    if is_distributed():
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), _cpu_group(dist.group.WORLD))


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a process could not reach another one of the run, because it is gone or the network is."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave() -> None:
    """Take leave of the other processes, at the very end; a launcher may kill the rest when the first one exits."""
    if is_distributed():
        dist.barrier()
        dist.destroy_process_group()
