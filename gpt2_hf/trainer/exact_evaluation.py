"""transformers' Trainer with a loss of a split that does not depend on batches, processes or interruptions.

In: a model and samples. Out: loss, perplexity and the number of scored tokens, and whatever metrics the user computes.
Next stage: `gpt2_trainer`.

What differs from the base class, each with its reason at the method:
  - token losses are summed over the split, where the base class averages the means of batches;
  - no sample is scored twice, and no logits are kept unless metrics are computed from them;
  - the random numbers of training are left alone, so that how often is evaluated changes nothing;
  - with a moving average of the weights, that is what is scored;
  - an evaluation that a signal interrupts is done again when the run is resumed.
"""

import bisect
import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, SaveStrategy

from ..checkpoints.state_files import load_state
from ..data import EpochSampler, MixedSamples, Samples, TextByTextSampler
from ..errors import UserError
from ..model.chunked_loss import IGNORE_INDEX
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..perplexity import perplexity
from ..runtime import distributed
from ..runtime.random_state import preserved_rng
from ..runtime.stop_signals import shield_workers
from ..runtime.temporary import temporarily
from .callbacks import EvaluationInterruptedError
from .checkpointing import process_state_files
from .combinations import UNKNOWN_FILLER, is_filled_up, knows_filler
from .layouts import one_row_per_sample
from .loss import LossTrainer, targets_of


@dataclass
class _Sums:
    """Running sums over the texts of a split, of which there is one or several.

    Attributes:
        loss: `[texts]`, of all scored tokens, in nats.
        counts: int64 `[texts, 2]`, scored tokens, and batches that have labels.
        ends: of each text but the last the number of batches that have been scored when it ends.
        batches: that have been scored on this process.
    """

    loss: torch.Tensor
    counts: torch.Tensor
    ends: list[int]
    batches: int = 0

    @classmethod
    def zero(cls, device: torch.device, batches_of_texts: list[int]) -> "_Sums":
        """Nothing yet, of texts with so many batches each, which are scored one after the other."""
        texts = len(batches_of_texts)
        counts = torch.zeros((texts, 2), dtype=torch.int64, device=device)
        ends = list(itertools.accumulate(batches_of_texts))[:-1]
        return cls(torch.zeros(texts, dtype=distributed.sum_dtype(device), device=device), counts, ends)

    def add(self, loss: torch.Tensor, num_tokens: torch.Tensor) -> None:
        """Take in the summed loss of a batch; that of one without tokens may be anything."""
        text = bisect.bisect_right(self.ends, self.batches)
        self.loss[text] += torch.where(num_tokens > 0, loss.to(self.loss.dtype), 0.0)
        self.counts[text] += torch.stack([num_tokens, torch.ones_like(num_tokens)])
        self.batches += 1

    def of_all_processes(self) -> list[tuple[float, int]] | None:
        """Loss per token, NaN if none was scored, and number of tokens: of all texts, then of each.

        `None` if there were no labels.
        """
        distributed.sum_over_processes(self.loss)
        distributed.sum_over_processes(self.counts)
        if not int(self.counts[:, 1].sum()):
            return None
        losses, tokens = self.loss.tolist(), self.counts[:, 0].tolist()
        sums = [(math.fsum(losses), sum(tokens)), *zip(losses, tokens, strict=True)]
        return [(loss / count if count else float("nan"), count) for loss, count in sums]


def dropping_columns(args: TrainingArguments, dataset: Any) -> contextlib.AbstractContextManager[None]:
    """Drop columns that the model does not take, as the arguments say, but not those of this package's samples."""
    removes = args.remove_unused_columns and not isinstance(dataset, Samples)
    return temporarily(args, remove_unused_columns=removes)


class _NothingLeftError(Exception):
    """An evaluation that was made up for has ended the training, as it would have where it was due."""


class ExactEvaluationTrainer(LossTrainer):
    """Scores a split exactly."""

    model: Any
    _sums: _Sums | None = None  # while a split is scored
    _is_evaluating = False
    _owes_evaluation = False
    _resumed_at_end: str | None = None  # the checkpoint of a run that has no step left
    _making_up = False
    _may_repeat = False  # whether samples are repeated so that every process has as many
    _loaded_split: Any = None  # whose loader the base class keeps with its workers

    @property
    def _keeps_losses(self) -> bool:
        """Whether somebody looks at the loss of each batch: the user's metrics, or a subclass's `prediction_step`."""
        is_own = type(self).prediction_step is ExactEvaluationTrainer.prediction_step
        return "prediction_step" in vars(self) or not is_own or "loss" in self.args.include_for_metrics

    # ---- the split ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every sample on exactly one process: none is repeated to make the shares even."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        if not isinstance(eval_dataset, str) and dataset is not self._loaded_split:
            # With persistent workers the base class would give the loader of the split before.
            if hasattr(self, "_eval_dataloaders"):
                self._eval_dataloaders.pop("eval", None)
            self._loaded_split = dataset
        with self._each_once(dataset, gathers=self.compute_metrics is not None or self._keeps_losses):
            return self._released(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As for an evaluation."""
        with self._each_once(test_dataset, gathers=True):
            return self._released(super().get_test_dataloader(test_dataset))

    def _released(self, loader: Any) -> Any:
        """A loader that goes, with its workers, when nobody has it: accelerate would hold what it has prepared."""
        self.accelerator._dataloaders = [each for each in self.accelerator._dataloaders if each is not loader]
        return shield_workers(loader)

    @contextlib.contextmanager
    def _each_once(self, dataset: Any, gathers: bool) -> Iterator[None]:
        # To gather predictions or run a sharded model all processes need as many batches, which this package's samples
        # give anyhow. What is repeated for it is not scored, and accelerate drops its predictions.
        is_shared_out = self.args.world_size > 1 and not isinstance(dataset, Samples)
        fills_up = is_shared_out and (gathers or self.is_fsdp_enabled)
        # A stream is always filled up: the first process reads it for all, and cuts its batches into shares.
        self._may_repeat = fills_up or (is_shared_out and isinstance(dataset, IterableDataset))
        with (
            temporarily(self.accelerator, even_batches=fills_up),
            temporarily(self.args, dataloader_drop_last=False),
            dropping_columns(self.args, dataset),
        ):
            yield

    def _without_repeated(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch whose samples beyond the end of the split have no labels."""
        state = self.accelerator.gradient_state
        if not (self._may_repeat and state.end_of_dataloader and state.remainder > 0):
            return inputs
        begins = _begins_in_one_row(inputs)
        targets = {name: inputs[name] for name in ("labels", "shift_labels") if torch.is_tensor(inputs.get(name))}
        for name, given in targets.items():
            labels = targets[name] = given.clone()
            share = len(labels) if begins is None else len(begins)
            num_new = max(state.remainder - self.args.process_index * share, 0)
            if begins is None:
                labels[num_new:] = IGNORE_INDEX
            elif num_new < share:
                labels[:, begins[num_new] :] = IGNORE_INDEX
        return {**inputs, **targets}

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order of the data; filler gives every process as many batches as the others."""
        if not isinstance(eval_dataset, Samples):
            return super()._get_eval_sampler(eval_dataset)
        if is_filled_up(self.args, eval_dataset) and not knows_filler(self.data_collator):
            raise UserError(UNKNOWN_FILLER)
        if isinstance(eval_dataset, MixedSamples):
            return self._text_by_text(eval_dataset)
        if self.args.world_size <= 1:
            return SequentialSampler(eval_dataset)
        # A sharded model runs on all processes at once or hangs.
        return EpochSampler(len(eval_dataset), 0, self.args.eval_batch_size * self.args.world_size, shuffle=False)

    def _text_by_text(self, samples: MixedSamples) -> TextByTextSampler:
        return TextByTextSampler(samples.sizes, self.args.eval_batch_size * self.args.world_size)

    # ---- its loss ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate one split or several, without touching the random numbers of training.

        Returns:
            The metrics. Of several splits `{name: split}` those of each under `eval_{name}_`, and `eval_loss` and
            `eval_perplexity` over the tokens of all.
        """
        if self._is_evaluating:  # one of several, for which the base class comes back here
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        part = "evaluate" if eval_dataset is None else "evaluate_other"  # the budget reckons with the first
        with temporarily(self, _is_evaluating=True), preserved_rng(self.args.device), self.job.watch.measure(part):
            metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        splits = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(splits, dict):
            metrics |= self._over_all(splits, metrics, metric_key_prefix)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """As the base class, without touching the random numbers of training."""
        with preserved_rng(self.args.device), self.job.watch.measure("evaluate_other"):
            return super().predict(*args, **kwargs)

    def _over_all(self, splits: dict[str, Any], metrics: dict[str, float], prefix: str) -> dict[str, float]:
        """Loss and perplexity over the tokens of several splits, by which a model can be the best one."""
        parts = [f"{prefix}_{name}" for name in splits if metrics.get(f"{prefix}_{name}_tokens")]
        if not parts or f"{prefix}_loss" in metrics:
            return {}
        tokens = sum(metrics[f"{part}_tokens"] for part in parts)
        loss = sum(metrics[f"{part}_loss"] * metrics[f"{part}_tokens"] for part in parts) / tokens
        result = {f"{prefix}_loss": loss}
        if not self.has_own_loss:
            result[f"{prefix}_perplexity"] = perplexity(loss)
        self.log(dict(result))
        return result

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The base class's loop, with the loss of the split made from sums over its tokens.

        A loss of the user's own is averaged alike: that of each batch counts by its scored tokens. A metric that the
        user computes takes the place of one of that name here. Of several texts in one split each has its own beside
        those of all, from the same pass.
        """
        if self.is_fsdp_enabled and not self.accelerator._models:
            self._shard()
        dataset = getattr(dataloader, "dataset", None)
        texts = list(dataset.texts) if isinstance(dataset, MixedSamples) else []
        batches = self._text_by_text(dataset).batches() if isinstance(dataset, MixedSamples) else [0]
        sums = _Sums.zero(self.args.device, batches)
        # accelerate cuts the last batch as if only that one had filler. Of several texts each may have some, without
        # labels.
        gather = self.accelerator.gather if texts else self.gather_function
        with (
            temporarily(self, _sums=sums, gather_function=gather),  # a metric may evaluate in its turn
            self.averaged_weights(),
        ):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        results = sums.of_all_processes()
        if results is not None:
            exact = self._named("", *results[0])
            for name, result in zip(texts, results[1:], strict=False):
                exact |= self._named(f"{name}_", *result)
            # where the base class averages losses, what it has under this name is its mean
            averaged = [f"{metric_key_prefix}_loss"] if self._keeps_losses else []
            computed = {name: value for name, value in output.metrics.items() if name not in averaged}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in exact.items()} | computed)
        return output

    def _shard(self) -> None:
        """Divide a model that was not trained; the base class would give accelerate no optimizer, without which it
        divides none.
        """
        model, _ = self.accelerator.prepare(self.model, torch.optim.SGD(self.model.parameters()))
        self.model = self.model_wrapped = model

    def _named(self, prefix: str, loss: float, tokens: int) -> dict[str, float]:
        known = {} if self.has_own_loss else {f"{prefix}perplexity": perplexity(loss)}
        return {f"{prefix}loss": loss, **known, f"{prefix}tokens": tokens}

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Add a batch to the running sums; without metrics nothing is kept, so memory does not grow with the split.

        Returns:
            Loss, logits and labels as the base class does, one row per sample; `None` for what nobody asks for. A
            subclass that overrides this gets the mean loss of the batch in any case.
        """
        inputs = self._without_repeated(self._prepare_inputs(inputs))
        targets = targets_of(inputs, self.scores_first_token)
        if self._sums is None or targets is None:
            with self.cache_by_arguments():
                return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        num_tokens = (targets != IGNORE_INDEX).sum()
        with self.cache_by_arguments(), self.returned_logits(not prediction_loss_only or self.has_own_loss):
            loss, outputs = self._evaluation_loss(model, dict(inputs), num_tokens)
        self._sums.add(loss, num_tokens)
        mean = loss / num_tokens.clamp(min=1) if self._keeps_losses else None
        if prediction_loss_only:
            return mean, None, None
        hidden = [*(ignore_keys if ignore_keys is not None else self._ignored_outputs()), "loss"]
        is_named = isinstance(outputs, dict)
        logits = tuple(outputs[name] for name in outputs if name not in hidden) if is_named else tuple(outputs[1:])
        logits, labels = one_row_per_sample(logits, inputs, self.label_names)
        return mean, logits[0] if len(logits) == 1 else logits, labels

    def _evaluation_loss(
        self, model: nn.Module, inputs: dict[str, Any], num_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """The loss of a batch on this process, as `compute_loss` has it, times its tokens; and the model's outputs."""
        # The sum of this package's model is taken as it is. The loss of another model, or of the user's own, may be
        # divided by the number that it is given, or be a mean from the first.
        is_own = type(self.plain_model).forward is GPT2HFForCausalLM.forward and not self.has_own_loss
        gives_sum = is_own and self.model_accepts_loss_kwargs  # without the number that model too has a mean
        divisor = torch.ones_like(num_tokens) if gives_sum else num_tokens.clamp(min=1)
        # `compute_loss` multiplies by the number of processes what it divides by the tokens of all of them.
        num_shares = self.accelerator.num_processes if self.multiplies_by_processes else 1
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=divisor * num_shares
            )
        return loss.detach().mean() * divisor, outputs

    def _ignored_outputs(self) -> list[str]:
        return getattr(getattr(self.model, "config", None), "keys_to_ignore_at_inference", ["past_key_values"])

    # ---- interrupted, and done again ----

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        num_logs, kept = len(self.state.log_history), self._callback_states()
        try:
            metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationInterruptedError:
            if self._making_up or self.state.global_step == 0:
                raise  # the checkpoint that the run came from still remembers; or there is nothing to save yet
            # The checkpoint says that this evaluation is missing, so that the history of a resumed run is whole.
            del self.state.log_history[num_logs:]
            self._restore_callbacks(kept)
            self._owes_evaluation = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return None
        if self.control.should_training_stop and self.args.save_strategy != SaveStrategy.NO:
            # With save_strategy "best" too: it is the last step, or a callback ends the run because of these metrics.
            self.control.should_save = True
        return metrics

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= self.state.max_steps:
            # The base class makes a step before it looks whether there is one left to make.
            self.control.should_training_stop = True
            return None
        try:
            return super()._run_epoch(*args, **kwargs)
        except _NothingLeftError:
            return None

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        result = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self._resumed_at_end = resume_from_checkpoint if self.state.global_step >= max_steps else None
        return result

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._resumed_at_end is not None:
            self._load_rng_state(self._resumed_at_end)  # which no epoch has done; it runs the missing evaluation
        return super()._finalize_training(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float] | None, trial: Any) -> bool:
        # save_strategy "best" takes the answer for whether to save, also where a stop has asked for a checkpoint.
        is_best = metrics is not None and super()._determine_best_metric(metrics, trial)
        if is_best and self.args.save_strategy != SaveStrategy.NO:
            self.control.should_save = True  # a callback may not have seen it: it is told of each split alone
        return is_best or self.control.should_save

    def process_state(self) -> dict[str, Any]:
        """With whether an evaluation is missing."""
        return {**super().process_state(), "owes_evaluation": self._owes_evaluation}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Resume, and run the evaluation that a signal interrupted, in the very state in which it was due."""
        super().load_process_state(state)
        if not state["owes_evaluation"]:
            return
        if self.has_time_to_make_up():
            self.control.should_evaluate = True
            if self.state.global_step >= self.state.max_steps:
                self.control.should_save = True  # no later checkpoint will have this evaluation
            with temporarily(self, _making_up=True):  # a later one that is interrupted saves what was trained since
                self._maybe_log_save_evaluate(
                    self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
                )
        if self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            raise _NothingLeftError  # the base class is about to make a step

    def has_time_to_make_up(self) -> bool:
        """Whether there is time for an evaluation that a signal interrupted."""
        return True


def _begins_in_one_row(batch: dict[str, Any]) -> list[int] | None:
    """Where the samples of a batch begin that a collator has put into one row; `None` where each has its own."""
    if (cu_seq_lens := batch.get("cu_seq_lens_q")) is not None:
        return [int(begin) for begin in cu_seq_lens[:-1]]
    positions = batch.get("position_ids")
    if positions is None or len(positions) != 1:
        return None
    begins: list[int] = (positions[0] == 0).nonzero().flatten().tolist()
    return begins if len(begins) > 1 else None


def owes_evaluation(checkpoint: Path) -> bool:
    """Whether a signal broke off the evaluation that was due at a checkpoint."""
    states = process_state_files(checkpoint)
    return bool(states) and bool(load_state(states[0]).get("owes_evaluation"))
