"""What watches a run and decides when it evaluates, saves and stops: one module per concern."""

from .cadence import CadenceCallback
from .loss_spikes import LossSpikes
from .non_finite import NonFiniteGuard
from .preemption import EvaluationInterruptedError, PreemptionCallback, SignalWatch
from .progress import ProgressCallback
from .tensorboard import ContinuousTensorBoardCallback
from .time_budget import TimeBudgetCallback

__all__ = [
    "CadenceCallback",
    "ContinuousTensorBoardCallback",
    "EvaluationInterruptedError",
    "LossSpikes",
    "NonFiniteGuard",
    "PreemptionCallback",
    "ProgressCallback",
    "SignalWatch",
    "TimeBudgetCallback",
]
