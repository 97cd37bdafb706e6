"""A learning-rate schedule that follows the clock."""

import math
from collections.abc import Callable


def cosine_by_time(warmup_steps: int, total_steps: int, time_share: Callable[[], float]) -> Callable[[int], float]:
    """Linear warmup over steps, then a cosine that reaches 0 when the time is up, or the steps are.

    A budget stops training long before the last step; a schedule over steps would then end at a high rate, which
    costs quality (Hoffmann et al. 2022, section 3.1, on schedules of the wrong length).

    Args:
        warmup_steps: steps of linear warmup.
        total_steps: the last step, should time not run out first.
        time_share: share of this invocation's training time that has gone by, from 0 to 1.

    Returns:
        The factor on the peak learning rate for a step that begins now, for `torch.optim.lr_scheduler.LambdaLR`.
    """
    share_after_warmup: float | None = None

    def factor(step: int) -> float:
        nonlocal share_after_warmup
        if step < warmup_steps:
            return step / warmup_steps
        share = time_share()
        if share_after_warmup is None:
            share_after_warmup = share
        by_time = (share - share_after_warmup) / max(1.0 - share_after_warmup, 1e-9)
        by_steps = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return 0.5 * (1.0 + math.cos(math.pi * min(max(by_time, by_steps), 1.0)))

    return factor
