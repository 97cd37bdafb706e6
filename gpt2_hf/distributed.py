"""The few things that processes of one run must agree on."""

from datetime import timedelta

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on at least one process; every process must ask."""
    if not is_distributed():
        return flag
    votes = torch.tensor(int(flag), device=device)
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def of_first_process(value: float, device: torch.device) -> float:
    """The value that the first process has; every process must ask."""
    if not is_distributed():
        return value
    shared = torch.tensor(value, dtype=torch.float32, device=device)
    dist.broadcast(shared, 0)
    return float(shared.item())


def barrier() -> None:
    """Wait until every process is here."""
    if is_distributed():
        dist.barrier()


def set_timeout(seconds: float) -> None:
    """How long a process waits for the others before it gives up; transformers forgets it on a CPU."""
    if is_distributed() and dist.get_backend() == "gloo":
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a process could not reach another one of the run, because it is gone or the network is."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave() -> None:
    """Take leave of the other processes, at the very end; a launcher may kill the rest when the first one exits."""
    if is_distributed():
        dist.barrier()
        dist.destroy_process_group()
