"""The record of a run: every option with the value it had, and the circumstances.

The file `resolved_config.json` in the output folder and in each checkpoint; itself a config file for `--config`.
"""

import math
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

from .. import __version__
from ..data import LoadedData
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import own_names
from ..options.parsing import OVERRULES, PROVENANCE_KEY
from ..options.secrets import without_secrets
from ..options.training_arguments import GPT2HFTrainingArguments, plain_value
from ..runtime.hub import is_hub_id
from .preparation import account
from .run import Run


def resolved_config(run: Run, model: GPT2HFForCausalLM, data: LoadedData) -> dict[str, Any]:
    """Every option with the value it has, secrets left out, and the circumstances; a config file for `--config`."""
    options = {**asdict(run.model_args), **asdict(run.data_args)}
    stated = dict.fromkeys([*run.given, *run.args.stated])  # the first are not known of a run from Python
    names = own_names(GPT2HFTrainingArguments) + [name for name in stated if hasattr(run.args, name)]
    for name in dict.fromkeys(names):
        options[name] = plain_value(getattr(run.args, name))
    for choice, others in OVERRULES.items():
        if options.get(choice) is not None:  # the written file must not name what has no effect beside it
            options = {name: value for name, value in options.items() if name not in others}
    # Of this start, not of the run; of the size what was chosen is written; and the older of two names.
    for name in ("overwrite_output_dir", "resume_from_checkpoint", "verbose", "size", "gradient_checkpointing"):
        options.pop(name, None)
    # Not a wish where it was not stated, but what follows from this machine and this seed.
    for name in ("use_cpu", "data_seed"):
        if name not in stated:
            options.pop(name)
    for name in ("bf16", "fp16"):  # likewise where `false` was stated: it leaves the choice to --precision
        if name not in run.args.stated:
            options.pop(name, None)
    args = run.args
    named = ("model_name_or_path", "dataset_name")
    provenance = {
        "gpt2_hf": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else platform.processor() or "cpu",
        "processes": args.world_size,
        "precision": args.resolved_precision.name,
        "parameters": model.num_parameters(),
        "samples_per_step": args.samples_per_step,
        "run_name": run.name,
        "data": data.fingerprints,
        # elsewhere they may look like ids of the hub
        "folders": [name for name in named if options.get(name) is not None and not is_hub_id(options[name])],
        **({"separator": data.separator} if data.separator is not None else {}),
        "teachers": [teacher.fingerprint for teacher in run.teachers],
        **({"size": run.sizing.record()} if run.sizing is not None else {}),
        "account": account(run, model, data),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }
    return without_secrets({**_plain(options), PROVENANCE_KEY: provenance})


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out what JSON cannot hold; these are objects that transformers derives from other options."""
    return {
        name: value
        for name, value in options.items()
        if value is None
        or isinstance(value, bool | int | str | list | dict)
        or (isinstance(value, float) and math.isfinite(value))
    }
