"""GPT-2 124M on a GPU of so much memory: what to type, and why.

In: the memory of a GPU. Out: flags, and the rows of the tables in README and in "Use a small GPU", which a test
compares.

The peaks are estimated, not measured: weights, gradients and AdamW in fp32, what blocks of 1,024 tokens keep for the
backward pass in bf16 with dropout 0.1, the work space of the head and of a block, and half a GiB for CUDA. The account
is `tests/planning/test_memory_account.py`.
"""

from dataclasses import dataclass

GIB = 2**30
BLOCK = 1024
SAMPLES_PER_STEP = 64

# GiB at the peak with so many blocks in a micro-batch.
PEAKS = {2: 4.0, 4: 4.7, 8: 6.2, 16: 9.1, 32: 15.3, 64: 28.1}

# GiB that a run can have of a GPU that is sold by this name.
_ROOMS = {"8 GB": 7.5, "24 GB": 22.0, "80 GB": 76.0}
# The same of the memory that torch tells of.
_ROOM_SHARE = 0.95


@dataclass(frozen=True)
class Card:
    """A GPU, as a row of the table.

    Attributes:
        name: its memory.
        room_gib: what a run can have of it.
    """

    name: str
    room_gib: float

    @property
    def batch_size(self) -> int:
        """The largest micro-batch, in blocks, of those in `PEAKS` that it has room for."""
        return max(size for size, peak in PEAKS.items() if peak <= self.room_gib)

    @property
    def flags(self) -> str:
        """What to type."""
        return f"--global_batch_size {SAMPLES_PER_STEP} --batch_size {self.batch_size}"

    @property
    def tokens_at_once(self) -> int:
        """Tokens in a micro-batch."""
        return self.batch_size * BLOCK

    @property
    def reason(self) -> str:
        """Why no more and no less."""
        peak = f"{PEAKS[self.batch_size]:g} of {self.room_gib:g} GiB"
        if self.batch_size == SAMPLES_PER_STEP:
            return f"{peak}, the whole step in one micro-batch"
        return f"{peak}; twice as many tokens would take {PEAKS[2 * self.batch_size]:g}"


CARDS = tuple(Card(name, room) for name, room in _ROOMS.items())


def card_of(total_bytes: int) -> Card | None:
    """The GPU with so much memory; `None` if it has no room for the smallest micro-batch."""
    room = _ROOM_SHARE * total_bytes / GIB
    return Card(f"{total_bytes / GIB:.1f} GiB", round(room, 1)) if room >= min(PEAKS.values()) else None


def describe(total_bytes: int) -> str:
    """The line of a plan on a GPU with so much memory."""
    card = card_of(total_bytes)
    if card is None:
        return f"GPU: {total_bytes / GIB:.1f} GiB, small; use --activation_checkpointing and a small --batch_size"
    return (
        f"GPU: {card.name}; for GPT-2 124M on a large text use --sequence_mode blocks {card.flags}: "
        f"{card.tokens_at_once:,} tokens per micro-batch, {SAMPLES_PER_STEP * BLOCK:,} per step, about {card.reason} "
        "(estimated; the figures above are those of this run)"
    )
