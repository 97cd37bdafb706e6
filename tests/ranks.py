"""Several processes of one run to their end, started in a moment; the tests of the launchers use the real ones."""

from collections.abc import Callable, Sequence
from pathlib import Path

from .faults import harness


def allow_fsdp_on_cpu() -> None:
    """accelerate turns FSDP on for accelerators only: let it take CPU processes for some."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    initialise = PartialState.__init__

    def init(self: PartialState, *args: object, **kwargs: object) -> None:
        initialise(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = init


def end(
    processes: int, argv: Sequence[str], log: Path, fsdp: bool = False, prepare: Callable[[], None] | None = None
) -> tuple[list[int | None], str]:
    """Run the command in so many processes, all with one log; their exit codes and what they printed.

    Each calls `prepare` before, if it is given; with FSDP it would have to call `allow_fsdp_on_cpu`.
    """
    first = prepare or (allow_fsdp_on_cpu if fsdp else None)
    ranks = harness.start_ranks(list(argv), [log] * processes, first)
    codes = harness.join(ranks, timeout=240)
    harness.kill_started()
    return codes, log.read_text(encoding="utf-8")


def run(
    processes: int, argv: Sequence[str], log: Path, fsdp: bool = False, prepare: Callable[[], None] | None = None
) -> str:
    """Like `end`, where all must end well; what they printed."""
    codes, text = end(processes, argv, log, fsdp, prepare)
    assert codes == [0] * processes, f"exit codes {codes}\n{text}"
    return text
