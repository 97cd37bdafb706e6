"""Learning-rate schedules that follow the clock."""

import math
from collections.abc import Callable

# The factor on the peak learning rate by the place between the peak, 0, and the end, 1.
_DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


class DecayByTime:
    """Linear warmup over steps, then a decay that reaches 0 when the time is up, or the steps are.

    A budget stops training long before the last step; a schedule over steps would then end at a high learning rate,
    which costs quality (Hoffmann et al. 2022, section 3.1, on schedules of the wrong length).

    Call it with a step for the factor on the peak learning rate, as `torch.optim.lr_scheduler.LambdaLR` does.

    Args:
        kind: of the decay, one of `options.arguments.DECAYS_BY_TIME`.
        warmup_steps: steps of linear warmup.
        total_steps: the last step, should time not run out first.
        time_share: share of this invocation's training time that has gone by, from 0 to 1.
        progress: where an earlier invocation of the same run left the decay.

    Attributes:
        progress: place on the decay, from 0 at the peak to 1 at the end.
    """

    def __init__(
        self, kind: str, warmup_steps: int, total_steps: int, time_share: Callable[[], float], progress: float = 0.0
    ) -> None:
        self._decay = _DECAYS[kind]
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.time_share = time_share
        self.progress = self._progress_at_start = progress
        self._share_at_start: float | None = None

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return step / self.warmup_steps
        share = self.time_share()
        if self._share_at_start is None:
            self._share_at_start = share
        by_time = (share - self._share_at_start) / max(1.0 - self._share_at_start, 1e-9)
        by_time = self._progress_at_start + (1.0 - self._progress_at_start) * by_time
        by_steps = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        self.progress = min(max(by_time, by_steps), 1.0)
        return self._decay(self.progress)
