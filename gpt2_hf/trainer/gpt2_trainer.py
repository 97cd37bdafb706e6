"""transformers' Trainer, made exact, safe and quiet.

In: a model, arguments, samples and a collator. Out: a trained model and checkpoints. Next stage: `evaluate`,
`generate`, `export`, `report`.

What differs from the base class, beside checkpoints (see `checkpointing`), the loss (see `loss`) and evaluation (see
`exact_evaluation`):
  - what contradicts itself, has no effect or would be inexact is refused (see also `combinations`);
  - a step whose gradient is not finite never reaches the weights;
  - the order of this package's samples depends on seed and epoch alone, and a stream goes on where it was;
  - Muon is an optimizer, and a schedule can follow the time budget, which ends the run in time;
  - speed is counted in trained tokens, which are read from the device when a log is due;
  - terminal and TensorBoard get this package's reports, and a text that the model writes at each evaluation;
  - in a search, a trial that diverges has failed, and what a trial cannot change is refused;
  - without a job, the folder is looked after as a job does it.
"""

import dataclasses
import itertools
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import skip_first_batches
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import Subset
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainingArguments, set_seed
from transformers import trainer as transformers_trainer
from transformers.integrations import TensorBoardCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import (
    HPSearchBackend,
    IntervalStrategy,
    SaveStrategy,
    TrainOutput,
    default_compute_objective,
)

from ..checkpoints import folders
from ..checkpoints.ownership import refuse_foreign_checkpoints
from ..checkpoints.sharding import check_engine
from ..data import (
    EpochSampler,
    FlatteningCollator,
    PaddingCollator,
    Samples,
    StreamingLoader,
    StreamingSamples,
    train_sampler,
)
from ..data.samples import BlockSamples, MixedSamples, SequenceMode
from ..data.sampling import FILLER, STRATEGIES
from ..errors import TrainingDivergedError, UserError
from ..model.chunked_loss import IGNORE_INDEX
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.training_arguments import GPT2HFTrainingArguments, plain_value, with_own_fields
from ..perplexity import perplexity
from ..runtime import distributed
from ..runtime.own_process import suit_changing_shapes
from ..runtime.random_state import preserved_rng
from ..runtime.stop_signals import shield_workers
from ..runtime.stopwatch import Stopwatch
from ..runtime.temporary import temporarily
from .callbacks import (
    CadenceCallback,
    ContinuousTensorBoardCallback,
    LossSpikes,
    NonFiniteGuard,
    StopCallback,
    StorableStateCallback,
    TimeBudgetCallback,
)
from .callbacks import ProgressCallback as TerminalCallback
from .combinations import check_combinations, knows_filler
from .distillation import Distillation, check_teachers
from .exact_evaluation import ExactEvaluationTrainer, dropping_columns, owes_evaluation
from .generation_config import make_storable
from .job_context import JobContext
from .loss import targets_of
from .muon import muon_for
from .remaining import (
    RemainingWork,
    checkpoint_seconds,
    generation_seconds,
    size_ratio,
    split_seconds,
    with_margin,
)
from .schedule import DecayByTime
from .speed import TrainingSpeed, peak_tokens_per_second
from .weight_average import WeightAverage

# Numbers that an evaluation here has beside the loss; not what a search for hyperparameters is to minimise.
_BESIDE_THE_LOSS = ("_perplexity", "_tokens", "_preparation_time")

# Arguments that are read when the Trainer is made: a later change, by a search too, would do nothing.
_READ_ONCE = (
    *("ema_decay", "distill_alpha", "distill_temperature", "early_stopping_patience"),
    *("global_batch_size", "precision", "fp16", "bf16", "neftune_noise_alpha"),
)
# The same under conditions: beside global_batch_size, and with another model than this package's.
_DIVIDED = ("per_device_train_batch_size", "gradient_accumulation_steps")
_SMOOTHED = ("label_smoothing_factor",)

# How transformers' classes are called whose labels are no next tokens.
_OTHER_LABELS = ("Classification", "ForQuestionAnswering", "ForMaskedLM", "ForMultipleChoice", "SentencePrediction")

# Logged with an evaluation, and no results of it.
_CLOCKS = ("hours", "session_hours")


class GPT2HFTrainer(ExactEvaluationTrainer):
    """Trains a causal language model exactly and safely.

    Takes what `transformers.Trainer` takes, in the same order, a job and teachers.

    Args:
        args: `GPT2HFTrainingArguments`; with transformers' own, or none, there is no time budget.
        job: the job around it. Without one, signals are left to the caller, and `max_training_hours` counts from the
            call of `train()`.
        teachers: models whose probabilities the model learns beside the labels, as `distill_alpha` and
            `distill_temperature` of the arguments say (see `distillation`). They must have the model's tokens and as
            many positions as a sample has; they are moved to the device and put into evaluation mode. The training
            loss in the log is then that of both terms, and `cross_entropy` that of the labels alone. Evaluations
            do not ask the teachers.

    Raises:
        UserError: if arguments contradict each other or would have no effect, if the data or the collator cannot give
            what they ask for, if a teacher does not fit the model, or if sharding is set up in an unsupported way.
    """

    is_in_train: bool
    early_stopping: EarlyStoppingCallback | None = None  # of `--early_stopping_patience`

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Callable | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable | None = None,
        compute_loss_func: Callable | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
        *,
        job: JobContext | None = None,
        teachers: Sequence[GPT2HFForCausalLM] = (),
    ):
        self._has_own_arguments = isinstance(args, GPT2HFTrainingArguments)
        args = with_own_fields(args)
        self._counts_from_train = job is None
        self.job = job if job is not None else JobContext(Stopwatch(age_at_start=0.0))
        self.watch = self.job.watch
        self.speed = TrainingSpeed(self.watch)
        self.compute_loss_func, self.compute_metrics = compute_loss_func, compute_metrics
        if teachers:
            self.distillation = Distillation(teachers, args.distill_alpha, args.distill_temperature)
        given = [callback() if isinstance(callback, type) else callback for callback in callbacks or []]
        check_combinations(
            args, data_collator, train_dataset, eval_dataset, given, optimizers, self, has_job=job is not None
        )
        self.non_finite_guard = NonFiniteGuard()
        remaining_work = _Asking(self, "remaining_work")
        self.time_budget = TimeBudgetCallback(args.max_training_hours, self.watch, remaining_work)
        self.cadence = CadenceCallback()
        stop = StopCallback(self.time_budget, self.job.signals, self.job.folder_is_lost)
        own_callbacks = [self.cadence, self.time_budget, stop, self.non_finite_guard, StorableStateCallback(), *given]
        if args.ema_decay is not None:
            self.average = WeightAverage(args.ema_decay, _Asking(self, "unwrapped_model"))
        if args.early_stopping_patience is not None:
            self.early_stopping = EarlyStoppingCallback(args.early_stopping_patience)
            own_callbacks.append(self.early_stopping)
        self._uses_cache = _uses_cache(model)
        self._reset_training()
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=own_callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.average is not None:
            # Before transformers' reporters too: all others find the average in the model when the training is over.
            self.callback_handler.callbacks.insert(0, self.average)
        self._exchange_reporters(given)
        self._look_at_model()
        self._read = {name: getattr(self.args, name) for name in (*_READ_ONCE, *_DIVIDED, *_SMOOTHED)}
        if self.distillation is not None:
            self.distillation.place(self.args.device)
        if self._counts_from_train and self.is_world_process_zero():  # a job says it itself
            chosen = [self.args.resolved_precision] if self._has_own_arguments and args.precision == "auto" else []
            for line in (*self.args.notices, *chosen):
                print(line, flush=True)
        self._draw_apart()

    def _draw_apart(self) -> None:
        """Seed each process with another number, or dropout would be the same in the samples of all."""
        if self.args.process_index:
            set_seed(self.args.seed + self.args.process_index)

    def _exchange_reporters(self, given: list[Any]) -> None:
        """This package's lines and curves in place of those that transformers adds; callbacks that were given stay."""
        added = [each for each in self.callback_handler.callbacks if not any(each is own for own in given)]
        in_place = (DEFAULT_PROGRESS_CALLBACK, ProgressCallback, PrinterCallback)  # the first: another in a notebook
        for callback in added:
            if type(callback) in (*in_place, TensorBoardCallback):
                self.remove_callback(callback)
        self.add_callback(TerminalCallback(self.watch, self.args.max_training_hours))
        if any(type(callback) is TensorBoardCallback for callback in added):
            tensorboard = ContinuousTensorBoardCallback(self.job.run_files, keeps_earlier=self._counts_from_train)
            tensorboard.on_init_end(self.args, self.state, self.control)
            self.add_callback(tensorboard)

    def _reset_training(self) -> None:
        """What an earlier call of `train()` has left; the weights stay."""
        self.non_finite_guard.reset()
        self.time_budget.reset()
        if self.early_stopping is not None:
            self.early_stopping.early_stopping_patience_counter = 0
        self.speed.reset()
        self._step_loss: torch.Tensor | None = None
        self._loss_spikes = LossSpikes()
        self._stream: StreamingLoader | None = None
        self._train_sampler: EpochSampler | None = None
        self._grouped_sampler: LengthGroupedSampler | None = None  # of data that are not this package's
        self._evaluated_at = self._saved_at = -1  # the last steps that were
        self._owes_evaluation = False
        self._left_out_at = 0
        if self.distillation is not None:
            self.distillation.reset()
        if self.average is not None:
            self.average.reset()

    def _look_at_model(self) -> None:
        """What depends on the model, which `model_init` makes anew."""
        if self.is_fsdp_enabled and not isinstance(self.unwrapped_model(), PreTrainedModel):
            raise UserError(
                f"FSDP saves models that are a PreTrainedModel, which {type(self.unwrapped_model()).__name__} is not; "
                "leave FSDP out"
            )
        if self.distillation is not None:
            check_teachers(self.plain_model, self.distillation.teachers)
        self._smooths_itself = self.is_own_model  # asked between two trials too, when there is no model
        kind, collator = type(self.plain_model), self.data_collator
        if not _predicts_next_tokens(self.plain_model):
            raise UserError(
                f"a {kind.__name__} does not predict the next token, which loss and evaluation take for granted here; "
                "use transformers.Trainer"
            )
        is_shifted = isinstance(collator, FlatteningCollator | PaddingCollator) and not self.overrides_loss
        if is_shifted and kind.__module__.startswith("transformers."):
            raise UserError(
                f"this package's collators give shift_labels, which {kind.__name__} does not read; use a collator of "
                "transformers, or a GPT2HFForCausalLM"
            )
        if is_shifted and self.scores_first_token:
            raise UserError(
                "this package's collators give shift_labels, to which peft adds no virtual tokens; use a collator of "
                "transformers"
            )
        if self.args.uses_muon and not isinstance(self.plain_model, PreTrainedModel):
            raise UserError(
                f"--optim muon needs a PreTrainedModel, to know its head, which {kind.__name__} is not; use "
                "adamw_torch_fused"
            )
        if self.is_own_model:
            # The Trainer turns the cache off in the config that it saves; here it is off in each step.
            self.plain_model.config.use_cache = self._uses_cache
            further = {"--label_smoothing_factor": "label_smoothing"} if self.args.label_smoothing_factor else {}
            further |= {"teachers": "summed_loss"} if self.distillation is not None else {}
            for option, argument in further.items():
                if not self.model_takes(argument):
                    raise UserError(
                        f"{option}: {type(self.plain_model).__name__}.forward takes no {argument}; give it **kwargs, "
                        "and let it hand them to the forward of its base class"
                    )
        self.num_parameters = sum(p.numel() for p in self.model.parameters())
        model = self.plain_model
        is_counted = isinstance(model, PreTrainedModel)  # what another module calls num_parameters may be anything
        self._flops_per_token = 6 * model.num_parameters(exclude_embeddings=True) if is_counted else 0
        self.speed.peak = self.peak_tokens_per_second

    def call_model_init(self, trial: Any = None) -> Any:
        """The base class's; what the new model's config says of the cache is kept."""
        model = super().call_model_init(trial)
        self._uses_cache = _uses_cache(model)
        return model

    def create_accelerator_and_postprocess(self) -> None:
        """The base class's engine, unless it would be unsafe or inexact."""
        config = self.args.accelerator_config
        if self._copies_unseen:
            # or the host would wait for the device with each tensor of a batch
            config.non_blocking = True
        if self.args.world_size <= 1 and config.dispatch_batches is None:
            # A batch of a stream would be cut into shares for the processes, here one; a flat row cannot be cut.
            config.dispatch_batches = False
        # Gradients kept whole until the last accumulated batch would take the memory that sharding saves.
        by_sharding = {"sync_each_batch": True} if self.args.wants_fsdp else {}
        accumulation = {**by_sharding, **(config.gradient_accumulation_kwargs or {})}
        with (
            # The base class writes into it, and refuses at the next Trainer, or trial, what it has written.
            temporarily(config, gradient_accumulation_kwargs=accumulation),
            # Without one, accelerate takes whatever seed torch was last given as that of the data order.
            temporarily(self.args, data_seed=self.args.order_seed),
        ):
            super().create_accelerator_and_postprocess()
        if self.args.torch_compile and self.args.device.type == "cuda":
            # transformers and accelerate switch TF32 on, the one in one of torch's two settings, at whose
            # difference the compiler may fail. This writes both.
            torch.set_float32_matmul_precision("high" if self.args.tf32 else "highest")
        if (ddp := getattr(self.accelerator, "ddp_handler", None)) is not None:
            # Else the gradients are held twice, and buffers, which the model has none of that change, are sent around.
            ddp.gradient_as_bucket_view = True
            ddp.broadcast_buffers = bool(self.args.ddp_broadcast_buffers)
        check_engine(self.accelerator, self.args.wants_fsdp)

    @property
    def _copies_unseen(self) -> bool:
        """Whether batches are copied to the device while it computes."""
        return self.args.device.type == "cuda" and self.args.dataloader_pin_memory

    # ---- the training step ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; its loss is kept, on the device, for the message of a divergence."""
        self._step_loss = super().training_step(model, inputs, num_items_in_batch)
        return self._step_loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of an optimizer step; their tokens are counted for the speed, on the device."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counted = num_items if num_items is not None else self._count_alone(batches)
        if counted is not None:
            self.speed.add(counted)
        return batches, num_items

    def _count_alone(self, batches: list) -> torch.Tensor | int | None:
        """The tokens of batches whose model does not want their number, all processes taken to have as many."""
        targets = [targets_of(batch, self.scores_first_token) for batch in batches]
        counts = [(each != IGNORE_INDEX).sum() for each in targets if each is not None]
        shares = self.args.world_size if self.args.average_tokens_across_devices else 1
        return sum(counts) * shares if counts else None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The base class's choice, or Muon."""
        if self.optimizer is None and self.optimizer_cls_and_kwargs is None and self.args.uses_muon:
            model = model if model is not None else self.model
            self.optimizer = muon_for(model, self.args, self.get_decay_parameter_names(model))
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The base class's schedules, and the one that follows the time budget.

        With fp16 and a fused optimizer, a step that the loss scaler skips counts too: the schedule goes by
        `global_step`, as the data do, and so reaches its end at the last step.

        Raises:
            UserError: if a polynomial would have no steps.
        """
        warmup = self.args.get_warmup_steps(num_training_steps)
        if self.lr_scheduler is None and self.args.lr_scheduler_type == "polynomial" and warmup == num_training_steps:
            # it divides by the steps after the warmup when the last one is done
            steps = f"{num_training_steps:,} steps"
            raise UserError(f"--lr_scheduler_type polynomial: all {steps} are warmup; use fewer --warmup_steps")
        if self.lr_scheduler is None and self.args.schedule_by_time:
            budget = self.time_budget
            kind, progress = plain_value(self.args.lr_scheduler_type), budget.earlier_progress
            schedule = DecayByTime(kind, warmup, num_training_steps, lambda: budget.time_share, progress)
            budget.schedule = schedule
            # a function, since torch would keep the attributes of an object in the checkpoint
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: schedule(step)
            )
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, as the base class does; names of checkpoints work as paths do.

        A trial of a search with optuna that diverges has failed: its objective is NaN, and the search goes on. The
        other searches would take NaN for a result.

        Raises:
            TrainingDivergedError: if a gradient became non-finite; the weights were not touched by it.
            UserError: if there is no such checkpoint, or it is damaged, or if an argument has changed that was read
                when the Trainer was made.
        """
        if trial is None:
            self._refuse_changed("train")
        if self._counts_from_train:
            asked = self.args.resume_from_checkpoint
            # transformers' own arguments have it for scripts, which read it themselves
            if resume_from_checkpoint is None and trial is None and self._has_own_arguments and asked is not None:
                raise UserError(
                    "resume_from_checkpoint of the arguments is read by the main job; call "
                    f"train(resume_from_checkpoint={asked!r})"
                )
            self.watch.restart()
            if self._looks_after_folder:
                self._prepare_folder(Path(self._get_output_dir(trial)))
            wanted = resume_from_checkpoint
            resume_from_checkpoint = distributed.decided_by_first(lambda: self.find_checkpoint(wanted))
        if trial is not None:  # the base class draws the weights first, with the seed of the trial before
            self._hp_search_setup(trial)
        self.args.check_schedule()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TimeBudgetCallback | TerminalCallback):
                callback.max_hours = self.args.max_training_hours
        self._reset_training()
        # A compiler would make a graph for the first length, and another one as soon as it changes. The plugin is
        # shared by all trainers of a process.
        self.accelerator.state.dynamo_plugin.dynamic = True if self.shapes_change else None
        # A resumed training has started before; one evaluation more would be one more without a better loss.
        starts = self.args.eval_on_start and not resume_from_checkpoint
        # A stream continues at its position, so that there is nothing to skip.
        skips_nothing = self.args.ignore_data_skip or isinstance(self.train_dataset, StreamingSamples)
        try:
            with (
                suit_changing_shapes(self.args.device.type, self.shapes_change),
                temporarily(self.args, eval_on_start=starts, ignore_data_skip=skips_nothing),
            ):
                output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        except TrainingDivergedError as error:
            message = f"{error}{self._divergence_context(error.step)}"
            if trial is None or self.hp_search_backend != HPSearchBackend.OPTUNA:
                raise TrainingDivergedError(message, error.step) from error
            print(f"warning: this trial has failed: {message}", file=sys.stderr)
            self.objective = math.nan
            return TrainOutput(self.state.global_step, math.nan, {})
        finally:
            self._leave_training()
        if self.is_world_process_zero():
            for line in self.time_budget.end_lines(self.state.global_step):
                print(line, flush=True)
        return output

    def _prepare_folder(self, run_dir: Path) -> None:
        """Clear what a killed process left, once it is known that nothing there is somebody else's."""
        evaluates = self.args.eval_strategy != IntervalStrategy.NO
        publishes_best = evaluates and self.args.metric_for_best_model is not None

        def prepare() -> None:
            refuse_foreign_checkpoints(run_dir, publishes_best)
            folders.repair(run_dir)

        distributed.decided_by_first(prepare)

    def _leave_training(self) -> None:
        """What the base class leaves undone when training is broken off."""
        if self.is_in_train:
            self.close_reports()  # what comes next begins a curve of its own
            if (noise := getattr(self, "neftune_hook_handle", None)) is not None:
                noise.remove()
        if self.average is not None:
            self.average.settle()
        self.is_in_train = False

    @property
    def stopped_early(self) -> bool:
        """Whether `--early_stopping_patience` has ended the training."""
        stopping = self.early_stopping
        if stopping is None or self.state.global_step >= self.state.max_steps:
            return False
        return stopping.early_stopping_patience_counter >= stopping.early_stopping_patience

    def hyperparameter_search(
        self, hp_space: Callable | None = None, compute_objective: Callable | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As the base class; by default the objective is the loss, or the sum of the metrics that are computed."""
        return super().hyperparameter_search(hp_space, compute_objective or _objective, *args, **kwargs)

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        self._refuse_changed("hyperparameter_search")

    def _refuse_changed(self, method: str) -> None:
        """Refuse arguments that were changed where that does nothing."""
        divided = _DIVIDED if self.args.global_batch_size is not None else ()
        smoothed = () if self._smooths_itself else _SMOOTHED  # an object of the base class does, which is made once
        for name in (*_READ_ONCE, *divided, *smoothed):
            if getattr(self.args, name) != self._read[name]:
                raise UserError(
                    f"{method}: {name} is read when a Trainer is made; make one for each value, each with arguments "
                    "of its own"
                )

    @property
    def shapes_change(self) -> bool:
        """Whether batches differ in length."""
        if getattr(self.data_collator, "pad_to_length", None) is not None:
            return False
        samples = self.train_dataset.dataset if isinstance(self.train_dataset, Subset) else self.train_dataset
        parts = samples.texts.values() if isinstance(samples, MixedSamples) else [samples]
        in_blocks = getattr(samples, "mode", None) is SequenceMode.BLOCKS  # a stream's
        return not (in_blocks or all(isinstance(part, BlockSamples) for part in parts))

    @property
    def _looks_after_folder(self) -> bool:
        """Whether it does for its folder what a job does; one that saves nothing touches nothing."""
        return self._counts_from_train and self.args.save_strategy != SaveStrategy.NO

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        if self.model_init is not None:
            self._look_at_model()
            self._draw_apart()  # the base class has seeded all alike, for the weights
        self._settle_generation()
        run_dir = Path(self._get_output_dir(trial))
        result = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.later_than = None
        if self._looks_after_folder:
            resumed = resume_from_checkpoint
            elsewhere = resumed is not None and Path(resumed).parent.resolve() != run_dir.resolve()
            self.later_than = later_than = -1 if elsewhere else self.state.global_step
            # what cannot be set aside is found now, and not at the first checkpoint
            distributed.decided_by_first(lambda: folders.places_aside(run_dir, later_than, folders.UNPUBLISHED_PREFIX))
        if resume_from_checkpoint is not None and self.args.schedule_by_time and self.state.global_step < max_steps:
            folder = Path(resume_from_checkpoint)
            self.time_budget.schedule_has_ended = TimeBudgetCallback.schedule_ended_at(folder, self.state)
            if self.time_budget.schedule_has_ended and not owes_evaluation(folder):
                raise UserError(
                    f"resume_from_checkpoint: the schedule_by_time of {folder} has ended, and the learning rate would "
                    "be 0; train a new model for longer, or this one with another schedule"
                )
        self.time_budget.restore(self.state)  # before the schedule is made, which follows it
        return result

    def _settle_generation(self) -> None:
        """See before the first step that a checkpoint can hold the model's generation config."""
        model = self.unwrapped_model()
        config = getattr(model, "generation_config", None) if isinstance(model, PreTrainedModel) else None
        if config is None or self.args.save_strategy == SaveStrategy.NO:
            return
        line = make_storable(config)
        if line is not None and self.is_world_process_zero():
            print(line, flush=True)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        # The base class comes here after each step and at the end of each epoch. What epoch strategies ask for there
        # was done after the epoch's last step, unless nobody knew that it was the last: data have no length, or a
        # callback has ended the training.
        step = self.state.global_step
        self.control.should_evaluate &= step != self._evaluated_at
        self.control.should_save &= step != self._saved_at
        if self.control.should_evaluate:
            self._evaluated_at = step
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        # With save_total_limit 1 the base class deletes all but the best checkpoint, the newest among them.
        with temporarily(self.args, save_total_limit=None):
            return super()._finalize_training(*args, **kwargs)

    def _divergence_context(self, step: int) -> str:
        """Loss and samples of a bad step, read only now that the run is over."""
        loss = f"; loss of the last batch {float(self._step_loss):.4g}" if self._step_loss is not None else ""
        dataloader = self.callback_handler.train_dataloader
        if self._train_sampler is None:
            return loss
        steps_per_epoch = math.ceil(len(dataloader) / self.args.gradient_accumulation_steps)
        epoch, step_in_epoch = divmod(step - 1, steps_per_epoch)
        self._train_sampler.set_epoch(epoch)
        first = step_in_epoch * self.args.gradient_accumulation_steps
        batches = itertools.islice(dataloader.batch_sampler, first, first + self.args.gradient_accumulation_steps)
        # the index of a shifted sample is equal to the plain one modulo their number
        rows = [row % len(self.train_dataset) for batch in batches for row in batch if row != FILLER]
        return f"{loss}; samples of that step: {', '.join(map(str, rows))}"

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Between clipping and the optimizer's step: the last moment to keep a bad gradient from the weights.
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        scaler = getattr(self.accelerator, "scaler", None)
        self.non_finite_guard.observe(grad_norm, self.optimizer, self.state.global_step + 1, scaler is not None)
        return grad_norm

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 operations per parameter and token (Kaplan et al. 2020, section 2.1); the count is made once."""
        return int(self._flops_per_token * inputs["input_ids"].numel()) if "input_ids" in inputs else 0

    # ---- the order of the data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """An order that depends on seed and epoch alone; by length with `group_by_length`."""
        samples = train_dataset if train_dataset is not None else self.train_dataset
        # only the data stage's own samples have the filler that completes the last batch
        if not isinstance(samples, Samples) or self.args.train_sampling_strategy not in STRATEGIES:
            sampler = super()._get_train_sampler(train_dataset)
            self._grouped_sampler = sampler if isinstance(sampler, LengthGroupedSampler) else None
            return sampler
        self._train_sampler = train_sampler(self.args, samples, knows_filler(self.data_collator))
        return self._train_sampler

    def _run_epoch(self, model: nn.Module, epoch: int, **kwargs: Any) -> Any:
        # With several processes accelerate's set_epoch does not reach the sampler of a loader that skips batches.
        if self._train_sampler is not None:
            self._train_sampler.set_epoch(epoch)
        if self._grouped_sampler is not None:  # which would take the random numbers that happen to be there
            self._grouped_sampler.generator = torch.Generator().manual_seed(self.args.order_seed + epoch)
        with temporarily(transformers_trainer, skip_first_batches=_skip_first_batches):
            return super()._run_epoch(model=model, epoch=epoch, **kwargs)

    def get_train_dataloader(self) -> Any:
        """The base class's loader, or for text that is not stored one that knows exactly where it is."""
        self.cadence.has_epochs = not isinstance(self.train_dataset, StreamingSamples)
        if not isinstance(self.train_dataset, StreamingSamples):
            with dropping_columns(self.args, self.train_dataset):
                return shield_workers(super().get_train_dataloader())
        shard = dataclasses.replace(self.train_dataset, rank=self.args.process_index, world_size=self.args.world_size)
        self._stream = StreamingLoader(
            shard,
            self._train_batch_size,
            self.data_collator,
            self.args.dataloader_num_workers,
            # others than CUDA might read a batch before it is there
            device=self.args.device if self._copies_unseen else None,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return self._stream

    # ---- logs ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add perplexity and speed to a training log before anyone sees it."""
        if "loss" in logs:
            if self.is_in_train:  # the base class has taken the losses so far from themselves, which leaves NaN of NaN
                self._tr_loss.masked_fill_(self._tr_loss.isnan(), 0.0)
            if self.distillation is not None:
                logs["cross_entropy"] = self.distillation.drain()
            if not self.has_own_loss and not self.args.label_smoothing_factor:
                logs["perplexity"] = perplexity(logs.get("cross_entropy", logs["loss"]))
            # without that average each process counts its own, and all have about as many
            processes = 1 if self.args.average_tokens_across_devices else self.args.world_size
            logs.update(self.speed.drain(self.args.device, processes))
            if (jump := self._loss_spikes.jump(logs["loss"])) is not None:
                logs["loss_spike"] = jump
            if (scaler := getattr(self.accelerator, "scaler", None)) is not None:
                self.non_finite_guard.check_scale(scaler.get_scale(), self.state.global_step)
        if "loss" in logs or any(
            name.startswith("eval_") for name in logs
        ):  # where the second one falls, the run was resumed
            logs["hours"] = self.time_budget.total_seconds / 3600
            logs["session_hours"] = self.watch.elapsed / 3600
        super().log(logs, start_time)
        for name in _CLOCKS:  # which are in the history now, and no metrics of an evaluation
            logs.pop(name, None)

    @property
    def peak_tokens_per_second(self) -> float | None:
        """What all devices together could train at their peak; `None` where that is not known."""
        teachers = self.distillation.teachers if self.distillation is not None else ()
        return peak_tokens_per_second(self.args, self.plain_model, self.train_dataset, teachers)

    def close_reports(self) -> None:
        """Close the event file, so that it can be deleted."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ContinuousTensorBoardCallback):
                callback.close()

    # ---- the hub ----

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As the base class, which would take the hours for results of an evaluation."""
        entries = self.state.log_history
        history = [{name: entry[name] for name in entry if name not in _CLOCKS} for entry in entries]
        with temporarily(self.state, log_history=history):
            super().create_model_card(*args, **kwargs)

    # ---- a text at each evaluation ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate exactly, and during training show a text that the model writes."""
        with suit_changing_shapes(self.args.device.type, self.shapes_change):
            metrics = super().evaluate(*args, **kwargs)
        is_part = self._is_evaluating  # of several splits
        if self.job.write_sample is not None and self.is_in_train and not self.is_fsdp_enabled and not is_part:
            with preserved_rng(self.args.device), self.watch.measure("sample"):
                self._show_sample(self.job.write_sample)
        return metrics

    def _show_sample(self, write_sample: Callable[[Any], str]) -> None:
        """Generate a text with the weights as they are, for whoever shows texts; the first process alone does."""
        if not self.is_world_process_zero():
            return
        with self.averaged_weights():
            text = write_sample(self.unwrapped_model())
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TerminalCallback | ContinuousTensorBoardCallback):
                callback.on_sample(self.state, text)

    # ---- the time budget ----

    def remaining_work(self) -> RemainingWork:
        """What the run does besides its steps, as long as each part is expected to take now."""
        sample = evaluation = checkpoint = 0.0
        if self.eval_dataset is not None and self.args.eval_strategy != IntervalStrategy.NO:
            if self.job.write_sample is not None:
                estimate = generation_seconds(self.args.sample_tokens, self.num_parameters)
                sample = self.watch.longest("sample") or estimate
            evaluation = self._split_seconds(self.eval_dataset) + sample
        if self.args.save_strategy != SaveStrategy.NO:
            checkpoint = checkpoint_seconds(self.watch, self.num_parameters)
        test = self._split_seconds(self.job.test_dataset) if self.job.test_dataset is not None else 0.0
        return RemainingWork(evaluation, checkpoint, test, self.job.closing_seconds)

    def _split_seconds(self, dataset: Any) -> float:
        if dataset is self.eval_dataset and (measured := self.watch.longest("evaluate")) is not None:
            return measured
        samples_per_step, alike = self.args.samples_per_step, self._pads_alike
        return split_seconds(self.watch, dataset, self.eval_dataset, self.train_dataset, samples_per_step, alike)

    @property
    def _pads_alike(self) -> bool:
        """Whether every sample is padded to the same length."""
        return isinstance(self.data_collator, PaddingCollator) and self.data_collator.pad_to_length is not None

    def seconds_in_history(self, dataset: Any) -> float:
        """How long a split takes by the longest evaluation in the log, which a checkpoint brings; 0 if not known."""
        longest = max((entry.get("eval_runtime", 0.0) for entry in self.state.log_history), default=0.0)
        return longest * (size_ratio(dataset, self.eval_dataset, self._pads_alike) or 0.0)

    def has_time_to_make_up(self) -> bool:
        """Whether the budget has room for an evaluation as long as those before, and the end; says if it has not."""
        budget, remaining = self.time_budget, self.remaining_work()
        if budget.max_hours is None:
            return True
        evaluation = self.seconds_in_history(self.eval_dataset)
        end = self.watch.elapsed + with_margin(evaluation + remaining.checkpoint + remaining.closing)
        if not distributed.any_process(end > budget.max_hours * 3600):
            return True
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            budget.skipped_evaluation = True
        elif self.is_world_process_zero():
            print("no time is left for the evaluation that a signal broke off", flush=True)
        return False

    # ---- what a checkpoint keeps ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.non_finite_guard.check()
        self.non_finite_guard.check_weights(model, self.state.global_step)
        super()._save_checkpoint(model, trial)
        self._saved_at = self.state.global_step

    def checkpoint_names(self) -> list[str]:
        """With the name that the budget gives."""
        return [*self.time_budget.checkpoint_names(), *super().checkpoint_names()]

    def process_state(self) -> dict[str, Any]:
        """With the watch for spikes, the place in a stream, the last evaluation, and what is logged of teachers."""
        return {
            **super().process_state(),
            "loss_spikes": self._loss_spikes.state_dict(),
            "stream": self._stream.state_dict() if self._stream is not None else None,
            "evaluated_at": self._evaluated_at,
            "distillation": self.distillation.state() if self.distillation is not None else None,
        }

    def load_process_state(self, state: dict[str, Any]) -> None:
        """With the same; an evaluation that was missed comes last."""
        if self._stream is not None and state["stream"] is not None:
            self._stream.load_state_dict(state["stream"])
        self._loss_spikes.load_state_dict(state["loss_spikes"])
        if self.distillation is not None and state.get("distillation") is not None:
            self.distillation.load_state(state["distillation"])
        if self.time_budget.schedule_has_ended:  # and only an evaluation is left to do
            self.control.should_training_stop = True
        # A pass of data without a length ends once more if nothing of it is left, and nothing is to be done twice.
        if not state["owes_evaluation"]:
            self._saved_at = self.state.global_step
        super().load_process_state(state)
        self._evaluated_at = state.get("evaluated_at", self._evaluated_at)


class _Asking:
    """Calls a method of a Trainer, without arguments, and does not hold the Trainer.

    Its callbacks would hold it otherwise: after `del trainer` its model would stay on the device, until Python looks
    for cycles, as transformers' Trainer does not.
    """

    def __init__(self, trainer: GPT2HFTrainer, method: str):
        self._trainer, self._method = weakref.ref(trainer), method

    def __call__(self) -> Any:
        return getattr(self._trainer(), self._method)()

    def __getstate__(self) -> tuple[Any, str]:
        return self._trainer(), self._method  # a copy of the Trainer asks the copy

    def __setstate__(self, state: tuple[Any, str]) -> None:
        self._trainer, self._method = weakref.ref(state[0]), state[1]


def _skip_first_batches(loader: Any, num_batches: int = 0) -> Any:
    """accelerate's function; the loader that it makes copies batches to the device as the one before does."""
    skipped = skip_first_batches(loader, num_batches)
    skipped._non_blocking = getattr(loader, "_non_blocking", False)
    return skipped


def _uses_cache(model: Any) -> bool:
    """What a model's config says of the cache."""
    return getattr(getattr(model, "config", None), "use_cache", True)


def _predicts_next_tokens(model: nn.Module) -> bool:
    """Whether a model may be a causal language model, as far as its config and the names of its classes say."""
    kinds = [kind.__name__ for kind in type(model).__mro__]
    is_decoder = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return is_decoder and not any(name.endswith(_OTHER_LABELS) for name in kinds)


def _objective(metrics: dict[str, float]) -> float:
    """transformers' objective, without the numbers that only this package's evaluation has."""
    chosen = {name: value for name, value in metrics.items() if not name.endswith(_BESIDE_THE_LOSS)}
    return default_compute_objective(chosen)
