"""Notice a training loss that jumps: the usual forerunner of a divergence, or a bad stretch of data."""

import math
from typing import Any

_DECAY = 0.9  # weight of the past in the running mean of squared steps, per logged loss
_DEVIATIONS = 6.0
_SMALLEST_JUMP = 0.2  # nats; below this a jump is noise even in a very smooth run
_LEARNING_LOGS = 5  # logs before the statistics mean anything


class LossSpikes:
    """Compares each logged loss with the last ordinary one and with the usual step between two logs.

    Attributes:
        ordinary: the last logged loss that was no spike, in nats per token.
    """

    def __init__(self) -> None:
        self.ordinary = math.nan
        self._squared_step = 0.0
        self._seen = 0

    def jump(self, loss: float) -> float | None:
        """Take a logged loss in; how far it lies above the last ordinary one if that is a spike, else `None`."""
        if not math.isfinite(loss):
            return None  # of an fp16 step that was skipped
        step = loss - self.ordinary
        self._seen += 1
        if self._seen > _LEARNING_LOGS and step > max(_DEVIATIONS * math.sqrt(self._squared_step), _SMALLEST_JUMP):
            return step  # and a spike does not make the next one look ordinary
        if self._seen > 1:
            self._squared_step = _DECAY * self._squared_step + (1 - _DECAY) * step**2
        self.ordinary = loss
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"ordinary": self.ordinary, "_squared_step": self._squared_step, "_seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.ordinary, self._squared_step, self._seen = state["ordinary"], state["_squared_step"], state["_seen"]
