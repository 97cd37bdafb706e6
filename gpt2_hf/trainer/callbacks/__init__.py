"""What watches a run and decides when it evaluates, saves and stops: one module per concern."""

from .cadence import CadenceCallback
from .early_stopping import is_out_of_patience
from .loss_spikes import LossSpikes
from .non_finite import NonFiniteGuard
from .progress import ProgressCallback
from .stopping import EvaluationInterruptedError, StopCallback
from .storable_state import StorableStateCallback
from .tensorboard import ContinuousTensorBoardCallback
from .time_budget import TimeBudgetCallback

__all__ = [
    "CadenceCallback",
    "ContinuousTensorBoardCallback",
    "EvaluationInterruptedError",
    "LossSpikes",
    "NonFiniteGuard",
    "ProgressCallback",
    "StopCallback",
    "StorableStateCallback",
    "TimeBudgetCallback",
    "is_out_of_patience",
]
