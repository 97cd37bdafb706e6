"""A function on two processes, in the environment that torchrun gives them, started in a moment."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import ranks
from ..faults import harness


def on_two(body: Callable[[str], Any], folder: Path, fsdp: bool = False) -> list[Any]:
    """What each process makes of the folder, which must be something that JSON has."""
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(harness.free_port()), "WORLD_SIZE": "2"}
    processes = []
    for rank in range(2):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        processes.append(harness.start_function(_as_rank, body, str(folder), environment, fsdp))
    assert harness.join(processes, timeout=120) == [0, 0]
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(2)]


def _as_rank(body: Callable[[str], Any], folder: str, environment: dict[str, str], fsdp: bool) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    if fsdp:
        ranks.allow_fsdp_on_cpu()
    result = body(folder)
    Path(folder, f"result-{environment['RANK']}.json").write_text(json.dumps(result))
