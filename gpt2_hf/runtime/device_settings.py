"""Settings of this process that suit batches whose shapes change from step to step.

In: the device. Used by: `trainer`, and by the commands that only run a model.
"""

import torch

from .cpu_memory import keep_freed_memory


def suit_changing_shapes(device_type: str) -> None:
    """Let a CPU keep the memory that a step frees; keep CUDA from planning attention anew for each shape.

    torch prefers cuDNN's attention on the newest cards. It makes a plan for every new shape, which takes longer than
    the step, and lines of text, evaluations and generated tokens bring new ones all the time; torch's own flash kernel
    needs no plan.
    """
    if device_type == "cpu":
        keep_freed_memory()
    elif device_type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
