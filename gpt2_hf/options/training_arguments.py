"""What the user may set about training: transformers' TrainingArguments with this package's defaults and limits.

Apart from `arguments`, because importing the base class takes seconds that other commands need not wait.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import get_int_from_env
from transformers import IntervalStrategy, SchedulerType, TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from ..errors import UserError
from ..runtime import distributed
from ..runtime.fallbacks import missing_for_compile
from ..runtime.precision import Precision, PrecisionName, current_device_type, resolve_precision
from .arguments import DECAYS_BY_TIME, option
from .fields import default_of
from .values import LARGEST_BATCH, require_filled, require_finite, require_in_range, without_paths
from .without_effect import WITHOUT_EFFECT, WITHOUT_EFFECT_IN_A_JOB

MUON = "muon"

# What tells a process that it is one of several, from torchrun and from MPI, as accelerate reads it.
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")

# Of the environment, which only a shell would have put in.
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\})")

# Optimizers whose settings are options of their own.
_WITHOUT_OPTIM_ARGS = {
    *("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_torch_npu_fused"),
    *("adafactor", MUON, "lomo", "adalomo"),
}

# Of what has no effect, what a script asks for its own use, and what this package does always.
_HARMLESS = ("do_train", "do_eval", "restore_callback_states_from_checkpoint")

# What an evaluation of a job has: of all its text, and of each text of a mix.
_METRICS = ("loss", "perplexity")

SMOOTHED_AND_TAUGHT = (
    "--label_smoothing_factor spreads probability evenly, where --distill_from spreads it as the teachers do; "
    "leave one of them out"
)


@dataclass
class GPT2HFTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with this project's defaults, a time budget, and automatic precision."""

    _argument_group_name = "training"

    output_dir: str | None = option("checkpoints", "Folder for everything the run leaves.", "checkpoint_dir")
    overwrite_output_dir: bool = option(False, "Delete an earlier run that is in output_dir.")
    resume_from_checkpoint: str | None = option(
        None,
        "Resume from a checkpoint: latest, a name such as checkpoint_epoch_3, or a path.",
        "resume_from",
    )
    num_train_epochs: float = option(10.0, "Passes over the training data.", "max_epochs")
    max_steps: int = option(-1, "Number of optimizer steps, whatever max_epochs; -1: max_epochs decides.")
    max_training_hours: float | None = option(
        12.0, "Wall-clock budget of this invocation in hours, start-up, final evaluation and saving included."
    )
    schedule_by_time: bool = option(
        False, "Let a cosine or linear schedule reach 0 at the end of max_training_hours instead of at the last step."
    )
    on_save_error: Literal["stop", "continue"] = option(
        "stop", "stop: end the run if a checkpoint cannot be written; continue: train on without it."
    )
    per_device_train_batch_size: int = option(8, "Samples in a batch, on each device.", "batch_size")
    per_device_eval_batch_size: int = option(8, "Samples in an evaluation batch, on each device.", "eval_batch_size")
    gradient_accumulation_steps: int = option(1, "Batches summed into one optimizer step.")
    global_batch_size: int | None = option(
        None,
        "Samples of an optimizer step on all devices together: accumulation follows from it and the number of "
        "devices, and batch_size is the largest micro-batch of a device.",
    )
    learning_rate: float = option(3e-4, "Peak learning rate.")
    weight_decay: float = option(0.01, "Decoupled weight decay; not on biases and LayerNorms.")
    optim: str = option(
        "adamw_torch_fused",
        "Optimizer: one of transformers' names, or muon: Muon for the hidden weight matrices of the blocks, AdamW for "
        "the rest.",
    )
    muon_learning_rate: float | None = option(
        None, "optim muon: peak learning rate of the hidden matrices; learning_rate when left out."
    )
    muon_weight_decay: float | None = option(
        None, "optim muon: weight decay of the hidden matrices; weight_decay, the embeddings' decay, when left out."
    )
    muon_momentum: float = option(0.95, "optim muon: momentum of the hidden matrices.")
    ema_decay: float | None = option(
        None,
        "Decay of an exponential moving average (EMA) of the weights, which is evaluated and saved: 0.998 averages "
        "over about 500 steps. none: no average.",
    )
    distill_from: list[str] | None = option(
        None,
        "Knowledge distillation: also learn from the output probabilities of these teachers: folders, checkpoints or "
        "hub ids of models with the same tokenizer. Those of several are averaged.",
    )
    distill_alpha: float = option(
        0.45, "distill_from: weight of the distillation loss, from 0 to 1; the cross-entropy has the rest."
    )
    distill_temperature: float = option(
        1.2,
        "distill_from: softmax temperature of teachers and student; above 1 gives improbable tokens more weight.",
    )
    adam_beta1: float = option(0.9, "AdamW's first beta.")
    adam_beta2: float = option(0.95, "AdamW's second beta.")
    adam_epsilon: float = option(1e-8, "AdamW's epsilon.")
    lr_scheduler_type: SchedulerType | str = option("cosine", "Learning-rate schedule after warmup; cosine ends at 0.")
    warmup_steps: float = option(2000, "Steps of linear warmup; below 1, a share of all steps.")
    max_grad_norm: float = option(1.0, "Clip the gradient's norm to this; 0: no clipping.", "gradient_clip")
    activation_checkpointing: bool = option(
        False, "Recompute activations in the backward pass: less memory, about a third more time."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto", "auto: bf16 where the device has it, else fp16 on CUDA, else fp32."
    )
    logging_steps: float = option(100, "Steps between two logs; below 1, a share of all steps.")
    eval_strategy: IntervalStrategy | str = option("steps", "steps: every eval_steps and after each epoch; epoch; no.")
    eval_steps: float | None = option(
        500, "Steps between two evaluations; below 1, a share of all steps.", "eval_every"
    )
    do_predict: bool = option(True, "Score the test split when the run is over, if there is one.")
    save_strategy: SaveStrategy | str = option(
        "steps",
        "steps: every save_steps, after each epoch, at each best; epoch: after each, at each best; best: at each "
        "best, and at the end; no.",
    )
    save_steps: float = option(1000, "Steps between two checkpoints; below 1, a share of all steps.", "save_every")
    save_total_limit: int | None = option(
        3,
        "How many of the last checkpoints, of any kind, are kept; those of epoch ends, the best and the time limit "
        "are kept in any case. none: keep all.",
    )
    dataloader_num_workers: int = option(0, "Processes that prepare batches.", "num_workers")
    sample_tokens: int = option(
        48, "Length in tokens of the text that is generated and shown at each evaluation; 0: none."
    )
    push_to_hub: bool = option(
        False,
        "When the run is over, upload best_model with its model card to hub_model_id; not within max_training_hours.",
    )
    report_to: list[str] = option(["tensorboard"], "Where to report to: tensorboard, wandb, ..., or none.")
    run_name: str | None = option(
        None, "What the run is called in TensorBoard and elsewhere; as its folder when left out."
    )
    verbose: bool = option(
        False,
        "Before the first step, print where every row and token of the text went, in place of three short lines.",
    )
    seed: int = option(42, "Seed of initialisation, dropout and data order.")
    data_seed: int | None = option(None, "Seed of the data order; seed when left out.")
    gradient_checkpointing: bool = option(False, "Older name of activation_checkpointing.")

    # Defaults of the Trainer that cost a host synchronisation a step, or a wrong number.
    logging_nan_inf_filter: bool = option(False, "Hide non-finite losses in logs.")
    metric_for_best_model: str | None = option(
        "loss",
        "Evaluation metric that decides which model is best: loss or perplexity, with --train_mix also NAME_loss of a "
        "text; in Python others too.",
    )
    ddp_find_unused_parameters: bool | None = option(False, "Search for parameters without gradient in every step.")
    early_stopping_patience: int | None = option(
        None, "Stop after this number of evaluations in a row without a better metric_for_best_model."
    )

    use_cpu: bool = option(False, "Do not use an accelerator.")
    fsdp: bool = option(False, "Shard weights, gradients and optimizer over the processes (FSDP2).")

    greater_is_better: bool | None = option(
        None, "In Python: whether a higher metric is better; by its name when left out."
    )

    resolved_precision: Precision = field(init=False)
    _share: int | None = field(default=None, init=False, repr=False)

    marks_epochs: bool = field(default=True, init=False, repr=False)
    """Whether step strategies act at the end of each epoch too, and whose checkpoint is named and kept."""

    notices: list[str] = field(default_factory=list, init=False)  # what is left out or left unused, to be printed

    stated: list[str] = field(default_factory=list, init=False, repr=False)
    """The options that were set to something else than their default, before any of them was settled."""

    def __post_init__(self) -> None:
        options = [entry for entry in fields(self) if entry.init]
        self.stated = [entry.name for entry in options if getattr(self, entry.name) != default_of(entry)]
        self._check_ranges()
        self._check_optimizer_options()
        own = ("output_dir", "resume_from_checkpoint", "distill_from")  # others may be empty for transformers
        for name in own:
            setattr(self, name, without_paths(getattr(self, name)))
        require_filled({name: getattr(self, name) for name in own})
        self._check_output_dir()
        _refuse(self, WITHOUT_EFFECT)
        self._settle_direction()
        device_type = current_device_type(self.use_cpu)
        self.resolved_precision = resolve_precision(self._wanted_precision(), device_type)
        # Before the base class, which hands it to accelerate.
        wants_compile = self.torch_compile or self.torch_compile_backend or self.torch_compile_mode
        missing = missing_for_compile(device_type) if wants_compile else None
        if missing is not None:
            self.torch_compile: bool = False
            self.torch_compile_backend: str | None = None
            self.torch_compile_mode: str | None = None
            self.notices.append(f"--torch_compile is left out: {missing}; training goes on, slower")
        self.fp16 = self.resolved_precision.name == "fp16"
        self.bf16 = self.resolved_precision.name == "bf16"
        # Without an accelerator the Trainer refuses bf16 and pins memory unless it is told that it is on a CPU.
        self.use_cpu = self.use_cpu or device_type == "cpu"
        recompute = self.activation_checkpointing or self.gradient_checkpointing
        # Beside FSDP transformers would advise FSDP's own, which `sharding` refuses; it need not know yet.
        self.activation_checkpointing = self.gradient_checkpointing = False
        self._check_engine()
        if "ACCELERATE_MIXED_PRECISION" in os.environ:  # accelerate's config file; the line printed is about ours
            name = self.resolved_precision.name
            os.environ["ACCELERATE_MIXED_PRECISION"] = "no" if name == "fp32" else name
        uses_muon, self.optim = self.uses_muon, "adamw_torch_fused" if self.uses_muon else self.optim
        super().__post_init__()
        if uses_muon:
            self.optim = MUON  # which the base class does not know
        # Both of transformers' names: older releases read the second, newer ones the first.
        self.activation_checkpointing = self.gradient_checkpointing = recompute
        self._take_one_device()
        self.divide_global_batch()
        distributed.set_timeout(self.ddp_timeout)

    __repr__ = TrainingArguments.__str__  # which masks tokens

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "__repr__" not in vars(cls):  # or `@dataclass` would make one
            cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    @property
    def uses_muon(self) -> bool:
        """Whether matrices are trained by Muon."""
        return self.optim == MUON

    @property
    def train_batch_size(self) -> int:
        """Samples in a micro-batch of a device."""
        return self._share or self.per_device_train_batch_size

    def divide_global_batch(self) -> None:
        """Choose accumulation and micro-batch for `global_batch_size`, if there is one.

        Raises:
            UserError: if it cannot be divided among the devices, or is too large.
        """
        if self.global_batch_size is not None:
            self._share, self.gradient_accumulation_steps = self.parts_on(self.world_size)
            largest = LARGEST_BATCH * self._share * self.world_size
            if self.global_batch_size > largest:
                raise UserError(f"--global_batch_size must be at most {largest:,}, got {self.global_batch_size:,}")

    def parts_on(self, devices: int) -> tuple[int, int]:
        """Samples in a micro-batch of a device, and how many of them make a step, on so many devices.

        Raises:
            UserError: if `global_batch_size` cannot be divided among them.
        """
        if self.global_batch_size is None:
            return self.per_device_train_batch_size, self.gradient_accumulation_steps
        return divide_batch(self.global_batch_size, devices, self.per_device_train_batch_size)

    @property
    def order_seed(self) -> int:
        """Seed of the data order."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def samples_per_step(self) -> int:
        """Samples of an optimizer step on all devices together."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def wants_fsdp(self) -> bool:
        """Whether FSDP was asked for, by option or by accelerate's config file."""
        return self.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"

    def _take_one_device(self) -> None:
        # Two devices in one process would need torch's DataParallel, which cannot divide a row without padding.
        if self.n_gpu > 1:
            all_of_them = f"torchrun --nproc_per_node {self.n_gpu} ..."
            self.notices.append(f"one of {self.n_gpu} GPUs is used; all of them: {all_of_them}")
        self._n_gpu = min(self.n_gpu, 1)

    def _check_output_dir(self) -> None:
        if self.output_dir is None:  # transformers would write to a folder of a name of its own
            raise UserError("--checkpoint_dir cannot be none; leave it out for checkpoints")
        if not _is_unicode(str(self.output_dir)):
            raise UserError(
                f"--checkpoint_dir: {self.output_dir} is not UTF-8, and safetensors and TensorBoard cannot write it; "
                "choose another name"
            )
        if (folder := _unexpanded(str(self.output_dir))) is not None:
            raise UserError(
                f"--output_dir: there is no folder {folder}, and variables are not expanded here; write the path "
                "itself, or make the folder first"
            )

    def _check_engine(self) -> None:
        if self.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise UserError(
                "--deepspeed is not supported: its checkpoints are pickles, which this package never reads; "
                "examples/accelerate/fsdp2.yaml shards weights, gradients and optimizer as ZeRO-3 does"
            )
        if self.uses_muon and self.wants_fsdp:
            raise UserError(
                f"--optim {MUON} needs whole matrices, which FSDP divides; use --optim adamw_torch_fused with FSDP"
            )

    def _check_optimizer(self) -> None:
        names = [MUON, *(optimizer.value for optimizer in OptimizerNames)]
        if self.optim not in names:
            alike = [name for name in names if name.startswith(self.optim)]
            alike += difflib.get_close_matches(self.optim, names, n=1, cutoff=0.5)
            raise UserError(f"--optim {self.optim} is not known; did you mean {[*alike, 'adamw_torch_fused'][0]}?")

    def check_for_job(self) -> None:
        """Refuse what only acts where Python code brings data and metrics of its own.

        Raises:
            UserError: with the option and what to do instead.
        """
        if not (self.metric_for_best_model or "loss").endswith(_METRICS):
            self.check_metric()  # before it is taken for one that should be high
        _refuse(self, WITHOUT_EFFECT_IN_A_JOB)

    def check_metric(self, texts: Iterable[str] = ()) -> None:
        """Refuse a metric that no evaluation of a job has.

        Args:
            texts: of a `--train_mix`, each of which has metrics of its own.

        Raises:
            UserError: with those that there are.
        """
        names = [f"{text}{metric}" for text in ("", *(f"{text}_" for text in texts)) for metric in _METRICS]
        if self.metric_for_best_model is not None and self.metric_for_best_model.removeprefix("eval_") not in names:
            raise UserError(f"--metric_for_best_model must be one of {', '.join(names)}, or none")

    def check_schedule(self) -> None:
        """Refuse a schedule by time without a time, or of another form."""
        if self.schedule_by_time and (self.max_training_hours is None or self.lr_scheduler_type not in DECAYS_BY_TIME):
            raise UserError("--schedule_by_time needs --max_training_hours, and --lr_scheduler_type cosine or linear")

    def _settle_direction(self) -> None:
        """The base class takes every metric but a loss for one that should be high."""
        name = self.metric_for_best_model
        if self.greater_is_better is None and name is not None and name.endswith("perplexity"):
            self.greater_is_better = False

    def _check_early_stopping(self) -> None:
        if self.early_stopping_patience is None:
            return
        if self.eval_strategy == IntervalStrategy.NO:
            raise UserError("--early_stopping_patience has no effect with --eval_strategy no; leave one of them out")
        if self.metric_for_best_model is None:
            raise UserError("--early_stopping_patience needs --metric_for_best_model, such as loss")

    def _check_distillation(self) -> None:
        if self.distill_from and self.label_smoothing_factor:
            raise UserError(SMOOTHED_AND_TAUGHT)

    def _settle_precision(self) -> None:
        """The precision of transformers' own arguments, which have checked it but for fp16 without CUDA.

        Without one of theirs, it is that of `accelerate launch --mixed_precision`.
        """
        names: dict[str, PrecisionName] = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
        wanted = "fp16" if self.fp16 else "bf16" if self.bf16 else getattr(self, "mixed_precision", "no")
        if wanted not in names:
            raise UserError(f"--mixed_precision {wanted} of accelerate is not supported; use bf16, fp16 or no")
        name = names[wanted]
        if name == "fp16":
            resolve_precision(name, current_device_type(self.use_cpu))
        self.resolved_precision = Precision(name, "asked for")

    def _wanted_precision(self) -> str:
        flags = [name for name in ("fp16", "bf16") if getattr(self, name)]
        if len(flags) == 2:
            raise UserError("--fp16 and --bf16 exclude each other; give one of them, or --precision auto")
        if flags and self.precision not in ("auto", flags[0]):
            raise UserError(f"--{flags[0]} contradicts --precision {self.precision}; give one of them")
        return flags[0] if flags else self.precision

    def _check_optimizer_options(self) -> None:
        """What the chosen optimizer would ignore."""
        optim = str(getattr(self.optim, "value", self.optim))
        if self.optim_args and optim in _WITHOUT_OPTIM_ARGS:
            raise UserError(
                f"--optim_args has no effect with --optim {optim}; what it takes are options of their own, such as "
                "--adam_beta2 and --weight_decay"
            )
        if self.optim_target_modules and not optim.startswith(("galore", "apollo")):
            raise UserError(f"--optim_target_modules has no effect with --optim {optim}; leave it out")

    def _check_ranges(self) -> None:
        require_finite(vars(self))
        require_in_range(vars(self))
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"--max_steps must be at least 1, or -1, got {self.max_steps:,}")
        if self.ddp_backend is not None and get_int_from_env(_LOCAL_RANK, -1) == -1:
            raise UserError(
                "--ddp_backend has no effect in a run of one process; start it with torchrun or leave it out"
            )
        if self.hub_strategy not in (HubStrategy.EVERY_SAVE, HubStrategy.END):  # the default, and what is done
            raise UserError("--hub_strategy has no effect: best_model is uploaded when the run is over; leave it out")
        self._check_optimizer()
        self._check_early_stopping()
        self._check_distillation()
        self.check_schedule()


def _refuse(args: TrainingArguments, without_effect: dict[str, str]) -> None:
    defaults = {entry.name: default_of(entry) for entry in fields(GPT2HFTrainingArguments)}
    for name, remedy in without_effect.items():
        value, default = getattr(args, name, None), defaults.get(name)
        # What is off by default may have been settled to another kind of off since.
        if value != default and (value or default):
            raise UserError(f"--{name} has no effect: {remedy}")


def with_own_fields(args: TrainingArguments | None) -> GPT2HFTrainingArguments:
    """Any `TrainingArguments` as this package's Trainer reads them: no time budget, and what was set stays.

    Args:
        args: transformers' own or a subclass; the values stay shared with the result, so that a later change of one
            is seen in the other. `None` for transformers' defaults.

    Raises:
        UserError: if they ask for what this package's Trainer does not do.
    """
    if isinstance(args, GPT2HFTrainingArguments):
        return args
    if args is None:
        args = TrainingArguments("tmp_trainer")  # as transformers' Trainer does
    _refuse(args, {name: remedy for name, remedy in WITHOUT_EFFECT.items() if name not in _HARMLESS})
    kind: type = GPT2HFTrainingArguments
    if type(args) is not TrainingArguments:  # a subclass keeps its methods
        kind = dataclass(type(type(args).__name__, (GPT2HFTrainingArguments, type(args)), {}), init=False, repr=False)
    inherited = {entry.name for entry in fields(args)}
    result: GPT2HFTrainingArguments = object.__new__(kind)
    result.__dict__ = vars(args)
    vars(args).setdefault("max_training_hours", None)
    vars(args).setdefault("sample_tokens", 0)
    for entry in fields(GPT2HFTrainingArguments):
        if entry.name not in inherited and entry.name != "resolved_precision":
            vars(args).setdefault(entry.name, default_of(entry))
    result.marks_epochs = False  # where transformers evaluates and saves, and keeps no more than save_total_limit
    result._check_output_dir()
    result._check_engine()
    if (result.metric_for_best_model or "").endswith("perplexity"):
        result.greater_is_better = False  # the base class has already taken it for one that should be high
    result._settle_precision()
    result._take_one_device()
    return result


def divide_batch(samples: int, devices: int, most: int) -> tuple[int, int]:
    """Divide the samples of an optimizer step among devices.

    Args:
        samples: of all devices together.
        devices: that have equal parts.
        most: samples in the largest micro-batch that a device can take.

    Returns:
        Samples in a micro-batch of a device, and how many of them: the fewest of equal size.

    Raises:
        UserError: if the devices cannot have equal parts.
    """
    part, left = divmod(samples, devices)
    if left or not part:
        choices = sorted({max(part, 1) * devices, (part + 1) * devices})
        raise UserError(
            f"--global_batch_size {samples} cannot be divided among {devices} processes; "
            f"use {' or '.join(map(str, choices))}"
        )
    share = max(size for size in range(1, min(most, part) + 1) if part % size == 0)
    return share, part // share


def plain_value(value: Any) -> Any:
    """An enum by its value, accelerate's configuration as the object that it was read from."""
    return value.to_dict() if isinstance(value, AcceleratorConfig) else getattr(value, "value", value)


def _is_unicode(text: str) -> bool:
    """Whether there are only characters in it; Python puts lone surrogates for other bytes of a file's name."""
    return not any("\ud800" <= mark <= "\udfff" for mark in text)


def _unexpanded(path: str) -> str | None:
    """The first folder of a path that is not there and is named like a variable of the shell: `$NAME`, `${NAME}`."""
    whole = Path(os.path.expanduser(path))
    named = [folder for folder in (*reversed(whole.parents), whole) if _VARIABLE.search(folder.name)]
    return next((folder.name for folder in named if not os.path.exists(folder)), None)
