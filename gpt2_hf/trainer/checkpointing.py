"""transformers' Trainer with checkpoints that are complete or absent, and from which a run is resumed exactly.

In: a Trainer's state at a step. Out: a checkpoint folder (see `checkpoints`), and the same state again.
Next stage: `loss`.

What differs from the base class, each with its reason at the method:
  - everything is written to a staging folder that is renamed when it is complete; nothing in it is a pickle;
  - settings that were changed for a resumed run take effect;
  - losses since the last log, and whatever else a subclass needs, are kept too;
  - with a moving average of the weights, the model's files have it, and those in training are beside them;
  - weights and optimizer of a sharded model are saved whole, so that any number of processes can resume.
"""

import contextlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn
from transformers import PreTrainedModel, Trainer, set_seed
from transformers.trainer_callback import ExportableState, TrainerState
from transformers.utils import SAFE_WEIGHTS_NAME, PushToHubMixin

from ..checkpoints import folders, manifest
from ..checkpoints.sharding import divided, divided_as, load_whole_weights, plain_twin, reshard, whole, whole_weights
from ..checkpoints.state_files import load_state, save_state
from ..errors import FolderLostError, SaveError, UserError
from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime import distributed
from ..runtime.random_state import get_rng_state, set_rng_state
from ..runtime.temporary import temporarily
from .callbacks import TimeBudgetCallback
from .callbacks.cadence import ends_epoch
from .job_context import JobContext
from .weight_average import WeightAverage, on_this_process

_OPTIMIZER_FILE = "optimizer.safetensors"
_SCHEDULER_FILE = "scheduler.safetensors"
_SCALER_FILE = "scaler.safetensors"
_UNAVERAGED_FILE = "unaveraged_weights.safetensors"
# Hyperparameters of a parameter group that a resumed run takes from its arguments, not from the checkpoint.
_GROUP_SETTINGS = ("weight_decay", "betas", "eps", "momentum")
# How an optimizer computes, which it was told when it was made.
_IMPLEMENTATION = ("fused", "foreach", "capturable")

_Best = tuple[float | None, int | None, str | None]  # of the Trainer's state: metric, step, folder
_NO_BEST: _Best = (None, None, None)


class _Gathered(NamedTuple):
    """What a sharded run saves, whole; but on the first process, nested `None`."""

    weights: dict[str, Any]
    unaveraged_weights: dict[str, Any] | None
    optimizer: dict[str, Any]


class CheckpointingTrainer(Trainer):
    """Saves and resumes safely and exactly.

    Attributes:
        job: the job around it; saving is measured on its stopwatch.
        average: the moving average of the weights, with `ema_decay`.
        later_than: the step after which checkpoints in the folder are of an earlier run. They are set aside when
            this one has a checkpoint of its own to put in their place; `None` if there is nothing to set aside.
    """

    args: GPT2HFTrainingArguments
    optimizer: Any
    lr_scheduler: Any
    job: JobContext
    average: WeightAverage | None = None
    later_than: int | None = None
    _gathered: _Gathered | None = None  # while a sharded run is being saved
    _best_before: _Best = _NO_BEST  # before the last evaluation
    _begun: int = 0  # the step at which this call of `train()` began
    _total_loss_scalar: float  # of the base class
    _passed_over: frozenset[Path] = frozenset()  # checkpoints of which it was said that they stay

    def process_state(self) -> dict[str, Any]:
        """What else a process needs to resume exactly; plain data and tensors."""
        return {}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Take over what `process_state` gave; that of the first process if their number has changed."""

    def unwrapped_model(self) -> Any:
        """The model without copies for several devices, and not in its compiled form."""
        if isinstance(self.model, PreTrainedModel) and "_orig_mod" not in vars(self.model):
            return self.model  # asked several times a step, and accelerate looks for DeepSpeed on the disk each time
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    # ---- saving ----

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The base class writes into the final folder, file by file, so that a crash leaves half a checkpoint
        # under a whole one's name. Here everything goes to a staging folder that is renamed at the end.
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        run_dir = Path(self._get_output_dir(trial=trial))
        target = run_dir / folders.checkpoint_folder(self.state.global_step)
        problem: BaseException | None = None
        if distributed.any_process(self.job.folder_is_lost()):
            raise FolderLostError(run_dir)
        with self.job.watch.measure("save"), self._gathered_shards():
            for stage in (self._open_checkpoint, self._fill_checkpoint, self._commit_checkpoint):
                try:
                    stage(run_dir, target)
                except Exception as error:
                    if not _is_of_the_disk(error):
                        raise
                    problem = error
                # No process waits for one that has failed.
                if distributed.any_process(problem is not None):
                    break
            else:
                return
        self._give_up_checkpoint(run_dir, target, problem)

    @contextlib.contextmanager
    def _gathered_shards(self) -> Iterator[None]:
        """Collect a sharded run on the first process before anything is written: a full disk must not part them."""
        if self.is_fsdp_enabled:
            optimizer = whole(self.optimizer.state_dict(), keep=self.args.should_save)
            unaveraged = self._unaveraged_weights()
            with self.averaged_weights():
                self._gathered = _Gathered(whole_weights(self.model), unaveraged, optimizer)
        try:
            yield
        finally:
            self._gathered = None

    def _open_checkpoint(self, run_dir: Path, target: Path) -> None:
        if self.args.should_save:
            folders.open_staging(run_dir, target.name)

    def _commit_checkpoint(self, run_dir: Path, target: Path) -> None:
        later_than, self.later_than = self.later_than, None
        if not self.args.should_save:
            return
        if later_than is not None:
            for name in folders.set_aside_after(run_dir, later_than, folders.UNPUBLISHED_PREFIX):
                print(f"a checkpoint of an earlier run is set aside as {run_dir / name}", flush=True)
        folders.commit(folders.staging_of(target), target)
        folders.add_names(run_dir, target.name, self.checkpoint_names())
        if self.state.best_global_step == self.state.global_step:
            folders.publish_best_model(target, run_dir)
        for checkpoint, added in folders.rotate(run_dir, self.args.save_total_limit, just_saved=target.name):
            if checkpoint not in self._passed_over:
                self._passed_over |= {checkpoint}
                print(f"{checkpoint} is kept beyond save_total_limit: {added.name} was added to it", flush=True)

    def _give_up_checkpoint(self, run_dir: Path, target: Path, problem: BaseException | None) -> None:
        """Leave no half checkpoint, and continue or stop as `--on_save_error` says."""
        if self.args.should_save:
            folders.delete_staging(target)
        newest = distributed.decided_by_first(lambda: folders.newest_intact(run_dir))  # all of it is read
        what = f"checkpoint {target}" if newest != target else "the best model, or the names of checkpoints,"
        message = (
            f"{what} could not be saved ({problem or 'another process failed'}); "
            f"{f'{newest} is intact' if newest else 'there is no earlier one'}"
        )
        if self.state.best_global_step == self.state.global_step:
            self._set_best(self._best_before)  # that which is in best_model
        if self.args.on_save_error == "stop":
            resume = "resume (--resume_from latest; in Python, resume_from_checkpoint=True)"
            remedy = f"Free disk space or fix the folder, then {resume if newest else 'start again'}"
            raise SaveError(f"{message}. {remedy}") from problem
        print(f"warning: {message}; training goes on (--on_save_error continue)", file=sys.stderr)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        self._best_before = self._best()
        return super()._determine_best_metric(metrics, trial)

    def _best(self) -> _Best:
        return self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint

    def _set_best(self, best: _Best) -> None:
        self.state.best_metric, self.state.best_global_step, self.state.best_model_checkpoint = best

    def _fill_checkpoint(self, run_dir: Path, target: Path) -> None:
        """Write every file of a checkpoint but the manifest; the Trainer's state last, as the base class does."""
        folder = folders.staging_of(target)
        self.save_model(str(folder), _internal_call=True)
        if not self.args.save_only_model:
            self._write_unaveraged_weights(folder)
            self._write_optimizer(folder)
            self._write_process_state(folder)
        if self.state.best_global_step:  # on every process: each loads the best model at the end
            best = run_dir / folders.checkpoint_folder(self.state.best_global_step)
            if best == target or best.is_dir():
                self.state.best_model_checkpoint = str(best)
        if not self.args.should_save:
            return
        self.state.stateful_callbacks |= self._callback_states()
        for name, source in self.job.run_files.items():
            shutil.copyfile(source, folder / name)
        self.state.save_to_json(str(folder / folders.TRAINER_STATE_NAME))

    @property
    def _has_length(self) -> bool:
        """Whether it is known when an epoch of the data ends."""
        return self.state.num_train_epochs != sys.maxsize

    def checkpoint_names(self) -> list[str]:
        """Further names of the checkpoint that is being saved."""
        names = []
        if self.args.marks_epochs and self._has_length and ends_epoch(self.state):
            names.append(folders.epoch_name(round(self.state.epoch)))
        if self.state.best_global_step == self.state.global_step:
            names.append(folders.BEST_MODEL)
        return names

    def _callback_states(self) -> dict[str, Any]:
        """What every callback keeps, by its class; a list where there are several of one class."""
        states: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, []).append(callback.state())
        return {name: entries[0] if len(entries) == 1 else entries for name, entries in states.items()}

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # As the base class, without training_args.bin, which is a pickle.
        output_dir = output_dir if output_dir is not None else str(self.args.output_dir)
        if not self.args.should_save:
            return
        unwrapped = self.unwrapped_model()
        if self.is_fsdp_enabled:
            unwrapped = plain_twin(unwrapped)
        if isinstance(unwrapped, PushToHubMixin):  # transformers' models and peft's
            unwrapped.save_pretrained(output_dir, state_dict=state_dict)
        else:  # tensors that share memory once, under the name that `_load_from_checkpoint` finds them by
            os.makedirs(output_dir, exist_ok=True)
            save_model(unwrapped, os.path.join(output_dir, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        tokenizer = self.processing_class or getattr(self.data_collator, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, or their moving average, from the first process; every process must ask."""
        with self.averaged_weights():
            if not self.is_fsdp_enabled:
                super().save_model(output_dir, _internal_call)
                return
            self._save(output_dir, self._gathered.weights if self._gathered else whole_weights(self.model))

    def averaged_weights(self) -> contextlib.AbstractContextManager[None]:
        """The model has the moving average as its weights, if there is one; afterwards those in training."""
        return self.average.in_model() if self.average is not None else contextlib.nullcontext()

    def _unaveraged_weights(self) -> dict[str, Any] | None:
        """Those in training, whole; `None` if they are the model's. Every process must ask."""
        if self.average is None or not self.average.num_updates:
            return None
        model = self.unwrapped_model()
        reshard(model)
        trained = {name: each.detach() for name, each in model.named_parameters() if each.requires_grad}
        return whole(trained, keep=self.args.should_save)

    def _write_unaveraged_weights(self, folder: Path) -> None:
        weights = self._gathered.unaveraged_weights if self._gathered else self._unaveraged_weights()
        if weights is not None and self.average is not None and self.args.should_save:
            save_state({"num_updates": self.average.num_updates, "weights": weights}, folder / _UNAVERAGED_FILE)

    def load_weights(self, folder: Path) -> None:
        """Take the weights of a saved model; every process must ask."""
        load_whole_weights(self.accelerator.unwrap_model(self.model), str(folder / SAFE_WEIGHTS_NAME))

    def _write_optimizer(self, folder: Path) -> None:
        """Optimizer, schedule and loss scale."""
        if not self.args.should_save:
            return
        optimizer = self._gathered.optimizer if self._gathered else self.optimizer.state_dict()
        save_state(optimizer, folder / _OPTIMIZER_FILE)
        save_state(self.lr_scheduler.state_dict(), folder / _SCHEDULER_FILE)
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None:
            save_state(scaler.state_dict(), folder / _SCALER_FILE)

    def _write_process_state(self, folder: Path) -> None:
        # With the losses since the last log, which the base class forgets: a resumed run logs the same means.
        state = {
            "rng": get_rng_state(self.args.device),
            "loss_since_log": self._tr_loss,
            "last_logged_step": self._globalstep_last_logged,
            **self.process_state(),
        }
        save_state(state, folder / self._process_state_file())

    def _process_state_file(self) -> str:
        suffix = "" if self.args.world_size <= 1 else f"_{self.args.process_index}"
        return f"process_state{suffix}.safetensors"

    # ---- resuming ----

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        # The base class lets the cadence of the checkpoint win over the arguments, and would make callbacks anew.
        with temporarily(self.args, restore_callback_states_from_checkpoint=False):
            result = super()._init_training_state(
                max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
            )
        if not self._has_length and resume_from_checkpoint is not None and not self.args.ignore_data_skip:
            result = self._place_without_length(resume_from_checkpoint)
        self._best_before = _NO_BEST
        self._restore_callbacks(self.state.stateful_callbacks if self.state.global_step else {})
        self.complete_publication(resume_from_checkpoint)
        self.state.compute_steps(self.args, max_steps)
        self._begun = self.state.global_step
        return result

    def _place_without_length(self, checkpoint: str) -> tuple[int, int]:
        """The pass that a run was in, and the batches of it that were trained on, for a loader without a length.

        The base class takes a pass for as long as the whole run; but it writes `epoch` by the batches of this pass.
        """
        saved = TrainerState.load_from_json(os.path.join(checkpoint, folders.TRAINER_STATE_NAME))
        earlier_passes = max(math.ceil(saved.epoch or 0.0) - 1, 0)
        steps = round(((saved.epoch or 0.0) - earlier_passes) * saved.max_steps)
        return earlier_passes, steps * self.args.gradient_accumulation_steps

    def _restore_callbacks(self, saved: dict[str, Any]) -> None:
        """Give callbacks what they kept in the checkpoint; their settings are those of this run."""
        left = {name: list(entries) if isinstance(entries, list) else [entries] for name, entries in saved.items()}
        for callback in self.callback_handler.callbacks:
            # the budget is asked elsewhere, before the schedule is made
            if isinstance(callback, ExportableState) and not isinstance(callback, TimeBudgetCallback):
                for state in left.get(type(callback).__name__, [])[:1]:
                    left[type(callback).__name__].pop(0)
                    for attribute, value in state.get("attributes", {}).items():
                        setattr(callback, attribute, value)

    def _loss_of_all_processes(self) -> torch.Tensor:
        """The loss since the last log, as a log has it: the mean over the processes."""
        return distributed.sum_over_processes(self._tr_loss.clone()) / distributed.num_processes()

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self._tr_loss = self._loss_of_all_processes()  # the base class adds that of this process
        # Older releases of transformers divide the loss of this call by the steps of the whole run.
        if not hasattr(self, "_initial_global_step"):
            rest, steps = self._tr_loss.item(), max(self.state.global_step - self._begun, 1)
            self._total_loss_scalar = (self._total_loss_scalar + rest) * self.state.global_step / steps - rest
        return super()._finalize_training(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; at the end with the speed of the steps of this call, where older releases count all of the run."""
        if "total_flos" in logs and not hasattr(self, "_initial_global_step"):
            share = (self.state.global_step - self._begun) / max(self.state.max_steps, 1)
            for name in {"train_samples_per_second", "train_steps_per_second"} & logs.keys():
                logs[name] = round(logs[name] * share, 3)
        super().log(logs, start_time)

    def find_checkpoint(self, wanted: str | bool | None) -> str | None:
        """The checkpoint that `train(resume_from_checkpoint=…)` means.

        Args:
            wanted: a path or a name such as latest; `True` for the newest intact one in `output_dir`.

        Raises:
            UserError: if `output_dir` holds none, if there is no such checkpoint, or if it is damaged or no state of a
                training.
        """
        if not wanted:
            return None
        run_dir = str(self.args.output_dir)
        if wanted is True:
            newest, passed_over = folders.newest_valid(run_dir)
            for line in passed_over:
                print(f"warning: {line}", file=sys.stderr)
            if newest is None:
                raise UserError(f"No valid checkpoint found in output directory ({run_dir})")
            return str(newest)
        folder = folders.resolve(str(wanted), run_dir)
        if (problem := manifest.damage(folder)) is not None:
            raise UserError(
                f"resume_from_checkpoint: {folder} is not an intact checkpoint of this package ({problem})"
            )
        if not (folder / folders.TRAINER_STATE_NAME).is_file():
            raise UserError(
                f"resume_from_checkpoint: {folder} holds a model and no state of a training; load it with "
                "from_pretrained and train anew"
            )
        return str(folder)

    def complete_publication(self, checkpoint: str | None) -> None:
        """Do again what follows a checkpoint's commit: the process may have been killed in between.

        And let `best_model` be the best one again where it is missing or damaged, or where a later one was published
        before a run went back to an earlier checkpoint; a best one that is gone, or that is not to be compared with,
        is forgotten.

        Raises:
            UserError: if a process does not see the checkpoint.
        """
        if checkpoint is None:
            return
        run_dir, folder = Path(str(self.args.output_dir)), Path(checkpoint)
        # one that was set aside is not of the branch that has the names and the best model
        within = folder.parent.resolve() == run_dir.resolve() and folders.step_of(folder) >= 0
        best = run_dir / folders.checkpoint_folder(self.state.best_global_step or 0)
        # all of the best model is read for it: by the process that writes
        source = folders.source_of_best_model(run_dir) if self.args.should_save else None
        published = source == best.name  # its checkpoint may have been deleted since
        there = published or best == folder or (self.args.should_save and manifest.damage(best) is None)
        # The first process decides, as it will write; it does so once all have looked, since it changes the folder.
        forgets = self.args.process_index == 0 and not (self.job.best_is_comparable and within and there)
        unseen, forgotten = distributed.largest_of_each(not folder.is_dir(), forgets)
        if unseen:
            raise UserError(f"{folder} is not seen by every process; give a folder that all hosts share")
        if forgotten:
            if within and not there and self.state.best_global_step and self.args.should_save:
                lost = f"{best} and its {folders.BEST_MODEL} are gone or damaged"
                print(f"best-model tracking restarts: {lost}", flush=True)
            self._set_best(_NO_BEST)
        elif self.state.best_global_step:  # of a run that was moved the state has an older path
            self.state.best_model_checkpoint = str(best if best.is_dir() else run_dir / folders.BEST_MODEL)
        if not (within and self.args.should_save):
            return
        if source is not None:
            folders.note_source_of_best_model(run_dir, source)  # the names change now
        folders.add_names(run_dir, folder.name, self.checkpoint_names())
        if self.state.best_global_step and best.is_dir():
            folders.add_names(run_dir, best.name, [folders.BEST_MODEL])
            if not published:
                folders.publish_best_model(best, run_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.is_fsdp_enabled:
            load_whole_weights(model or self.model, str(folder / SAFE_WEIGHTS_NAME))
            return
        _require_weights(folder, "resume_from_checkpoint")
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The base class misses tied weights, which a file has once.
        tied = set(getattr(self.model, "all_tied_weights_keys", ()))
        is_plain_module = not hasattr(self.model, "_keys_to_ignore_on_save")  # neither transformers' nor peft's
        if is_plain_module:  # which does not say what it ties
            weights = self.model.state_dict()
            there = {weight.data_ptr() for name, weight in weights.items() if name not in load_result.missing_keys}
            tied |= {name for name in load_result.missing_keys if weights[name].data_ptr() in there}
        missing = [name for name in load_result.missing_keys if name not in tied]
        if missing and is_plain_module:
            raise UserError(f"the checkpoint is of another model: it has no {', '.join(missing)}")
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def _load_best_model(self) -> None:
        best = str(self.state.best_model_checkpoint)
        _require_weights(Path(best), "load_best_model_at_end")
        is_adapter = hasattr(self.model, "get_base_model")
        # The base class looks for an adapter in the folder itself, where only the one called default lies.
        if self.is_fsdp_enabled or (is_adapter and self.model.active_adapter != "default"):
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()
        if self.average is not None:
            self.average.reset()  # or it would take the place of the best model

    def _load_unaveraged_weights(self, checkpoint: str) -> None:
        """Go on with the weights that were in training; what the model has is their moving average."""
        path = Path(checkpoint, _UNAVERAGED_FILE)
        if not path.is_file():
            return  # the average, if there is to be one, begins with the first step
        state = load_state(path)
        if self.average is not None:
            self.average.begin(state["num_updates"])
        model = self.unwrapped_model()
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in state["weights"].items():
                on_this_process(parameters[name]).copy_(on_this_process(divided_as(parameters[name], weight)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if not os.path.isfile(os.path.join(checkpoint, _OPTIMIZER_FILE)):
            # The base class would start anew with the optimizer, without a word.
            raise UserError(f"resume_from_checkpoint: {checkpoint} holds no optimizer ({_OPTIMIZER_FILE} is missing)")
        self._load_unaveraged_weights(checkpoint)
        wanted = [
            {key: group[key] for key in _GROUP_SETTINGS if key in group} for group in self.optimizer.param_groups
        ]
        base_lrs = list(getattr(self.lr_scheduler, "base_lrs", []))
        state = divided(load_state(os.path.join(checkpoint, _OPTIMIZER_FILE)), self.optimizer)
        # torch would take these from the checkpoint, but part of what follows from them from the optimizer.
        for saved, group in zip(state["param_groups"], self.optimizer.param_groups, strict=False):
            saved.update({key: group[key] for key in _IMPLEMENTATION if key in group})
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(load_state(os.path.join(checkpoint, _SCHEDULER_FILE)))
        if not self._created_lr_scheduler:
            return  # one of the user's own has a say in learning rate and momentum, as it stood in the checkpoint
        # Both restore the old hyperparameters too; the arguments of this run are what the user asked for now.
        for group, settings in zip(self.optimizer.param_groups, wanted, strict=True):
            group.update(settings)
        self._apply_learning_rate(base_lrs)

    def _apply_learning_rate(self, base_lrs: list[float]) -> None:
        """Put the schedule of this run's arguments in force at the step that was reached."""
        scheduler: Any = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        factors = getattr(scheduler, "lr_lambdas", None)
        if not factors or not base_lrs:
            return
        scheduler.base_lrs = base_lrs
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(base_lrs, factors, strict=True)]
        for group, base, rate in zip(self.optimizer.param_groups, base_lrs, rates, strict=True):
            group["initial_lr"], group["lr"] = base, rate
        scheduler._last_lr = rates

    def _load_scaler(self, checkpoint: str | None) -> None:
        path = os.path.join(checkpoint or "", _SCALER_FILE)
        scaler = getattr(self.accelerator, "scaler", None)  # none where the precision has changed
        if checkpoint is not None and scaler is not None and os.path.isfile(path):
            scaler.load_state_dict(load_state(path))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None or not (states := process_state_files(checkpoint)):
            return
        path = Path(checkpoint, self._process_state_file())
        if path in states and len(states) == self.args.world_size:
            state = load_state(path)
            set_rng_state(state["rng"], self.args.device)
        else:
            # Written by another number of processes: what they share is kept, random numbers start anew. A stream was
            # divided among them, and refuses.
            state = load_state(states[0])
            state["loss_since_log"] = torch.stack([load_state(path)["loss_since_log"] for path in states]).mean()
            set_seed(self.args.seed + self.state.global_step * self.args.world_size + self.args.process_index)
        self._tr_loss = state["loss_since_log"].to(self.args.device)
        self._globalstep_last_logged = state["last_logged_step"]
        # train_loss stays the mean over the steps of this invocation
        self._total_loss_scalar = -self._loss_of_all_processes().item()
        self.load_process_state(state)


def _require_weights(folder: Path, option: str) -> None:
    """Refuse a folder without weights: the base class would take a pickle, or go on with those that there are."""
    if not any(folder.glob("*.safetensors.index.json")) and not any(folder.glob("**/*model.safetensors")):
        raise UserError(f"{option}: {folder} holds no weights ({SAFE_WEIGHTS_NAME} is missing)")


def process_state_files(checkpoint: str | Path) -> list[Path]:
    """The files of a checkpoint with the state of each process, that of the first process first."""
    return sorted(Path(checkpoint).glob("process_state*.safetensors"))


def _is_of_the_disk(error: Exception) -> bool:
    """Whether a file could not be written: safetensors has an exception of its own for it, tokenizers the bare one."""
    return isinstance(error, OSError | SafetensorError) or (type(error) is Exception and "os error" in str(error))
