"""Several processes of one training run, started in a moment on this machine.

As `torchrun` does it, but from the fork server of `tests.faults.harness`, which has imported everything already; the
tests of the launchers themselves use the real ones.
"""

import os
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from .faults import harness


def _rank(rank: int, processes: int, port: int, argv: list[str], log: str, fsdp: bool) -> None:
    """The body of a process: what a launcher puts into its environment, then the command."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if fsdp:
        _allow_fsdp_on_cpu()
    harness._run(argv, log)


def _allow_fsdp_on_cpu() -> None:
    """accelerate turns FSDP on for accelerators only: let it take CPU processes for some."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    initialise = PartialState.__init__

    def init(self: PartialState, *args: object, **kwargs: object) -> None:
        initialise(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = init


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(processes: int, argv: Sequence[str], log: Path, fsdp: bool = False) -> list[BaseProcess]:
    """Start the command in so many processes; all write to one log."""
    context, port = harness.warm_up(), free_port()
    ranks = [
        context.Process(target=_rank, args=(rank, processes, port, list(argv), str(log), fsdp))
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    return ranks


def join(ranks: Sequence[BaseProcess], log: Path, timeout: float = 120) -> list[int | None]:
    """Wait for the processes; their exit codes."""
    deadline = time.monotonic() + timeout
    for process in ranks:
        process.join(max(deadline - time.monotonic(), 0))
    codes = [process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    assert None not in codes, f"still running after {timeout} s: {codes}\n{log.read_text()}"
    return codes


def run(processes: int, argv: Sequence[str], log: Path, fsdp: bool = False) -> str:
    """Run the command in so many processes to a good end; what they printed."""
    codes = join(start(processes, argv, log, fsdp), log)
    text = log.read_text(encoding="utf-8")
    assert codes == [0] * processes, f"exit codes {codes}\n{text}"
    return text
