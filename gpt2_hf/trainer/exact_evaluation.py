"""transformers' Trainer with a loss of a split that does not depend on batches, processes or interruptions.

In: a model and samples. Out: loss, perplexity and the number of scored tokens. Next stage: `trainer`.

What differs from the base class, each with its reason at the method:
  - token losses are summed over the split, where the base class averages the means of batches;
  - no sample is scored twice, and no logits are kept;
  - the random numbers of training are left alone, so that how often is evaluated changes nothing;
  - an evaluation that a signal breaks off is made up for when the run goes on.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer_utils import EvalLoopOutput

from ..checkpoints.state_files import load_state
from ..data import EpochSampler, Samples
from ..metrics import perplexity
from ..model.chunked_loss import IGNORE_INDEX
from ..runtime import distributed
from ..runtime.random_state import preserved_rng
from ..runtime.stop_signals import shield_workers
from .callbacks import EvaluationInterruptedError
from .checkpointing import CheckpointingTrainer


class ExactEvaluationTrainer(CheckpointingTrainer):
    """Scores a split exactly."""

    # Running sums while a split is scored: token losses in nats, and scored tokens.
    _nll_sum: torch.Tensor | None = None
    _scored_tokens: torch.Tensor | None = None
    _owes_evaluation = False
    _resumed_from: str | None = None
    _making_up = False

    # ---- the split ----

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every sample on exactly one process: none is repeated to make the shares even."""
        even_batches = self.accelerator.even_batches
        self.accelerator.even_batches = False
        try:
            return shield_workers(super().get_eval_dataloader(eval_dataset))
        finally:
            self.accelerator.even_batches = even_batches

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """In the order of the data; filler gives every process as many batches as the others."""
        if self.args.world_size <= 1 or not isinstance(eval_dataset, Samples):
            return super()._get_eval_sampler(eval_dataset)
        # A sharded model runs on all processes at once or hangs.
        return EpochSampler(len(eval_dataset), 0, self.args.eval_batch_size * self.args.world_size, shuffle=False)

    # ---- its loss ----

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate without touching the random numbers of training."""
        with preserved_rng(self.args.device), self.job.watch.measure("evaluate"):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The base class's loop, with the loss of the split made from sums over its tokens."""
        if not prediction_loss_only:
            return super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        # float64 where the device has it: the sum over a large split must not depend on its order
        dtype = torch.float32 if self.args.device.type == "mps" else torch.float64
        self._nll_sum = torch.zeros((), dtype=dtype, device=self.args.device)
        self._scored_tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        if distributed.is_distributed():
            torch.distributed.all_reduce(self._nll_sum)
            torch.distributed.all_reduce(self._scored_tokens)
        tokens = int(self._scored_tokens.item())
        loss = self._nll_sum.item() / tokens if tokens else float("nan")
        output.metrics[f"{metric_key_prefix}_loss"] = loss
        output.metrics[f"{metric_key_prefix}_perplexity"] = perplexity(loss)
        output.metrics[f"{metric_key_prefix}_tokens"] = tokens
        self._nll_sum = self._scored_tokens = None
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        """Add a batch to the running sums; nothing is gathered, so memory does not grow with the split."""
        if self._nll_sum is None or self._scored_tokens is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        targets = inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][..., 1:]
        with torch.no_grad(), self.compute_loss_context_manager():
            nll = model(**inputs, num_items_in_batch=1, return_logits=False).loss
        self._nll_sum += nll
        self._scored_tokens += (targets != IGNORE_INDEX).sum()
        return None, None, None

    # ---- broken off, and made up for ----

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationInterruptedError:
            if self._making_up:
                raise  # the checkpoint that the run came from still remembers
            # The checkpoint remembers that this evaluation is owed, so that the history of a resumed run is whole.
            self._owes_evaluation = True
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return None

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step >= self.state.max_steps:
            # The base class makes a step before it looks whether there is one left to make.
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._resumed_from = kwargs.get("resume_from_checkpoint")
        return super()._inner_training_loop(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        if self._resumed_from is not None and self._initial_global_step >= self.state.max_steps:
            self._load_rng_state(self._resumed_from)  # which no epoch has done; it runs the evaluation that is owed
        return super()._finalize_training(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float] | None, trial: Any) -> bool:
        # save_strategy "best" takes the answer for whether to save, also where a stop has asked for a checkpoint.
        is_best = metrics is not None and super()._determine_best_metric(metrics, trial)
        return is_best or self.control.should_save

    def process_state(self) -> dict[str, Any]:
        """With an evaluation that is owed."""
        return {**super().process_state(), "owes_evaluation": self._owes_evaluation}

    def load_process_state(self, state: dict[str, Any]) -> None:
        """Go on, and run the evaluation that a signal interrupted, in the very state in which it was due."""
        super().load_process_state(state)
        if not state["owes_evaluation"]:
            return
        self._making_up = True
        self.control.should_evaluate = True
        if self.state.global_step >= self.state.max_steps:
            self.control.should_save = True  # no later checkpoint will have this evaluation
        try:
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )
        finally:
            self._making_up = False  # a later evaluation that is interrupted saves what was trained since


def owes_evaluation(checkpoint: Path) -> bool:
    """Whether a signal broke off the evaluation that was due at a checkpoint."""
    states = sorted(checkpoint.glob("process_state*.safetensors"))
    return bool(states) and bool(load_state(states[0]).get("owes_evaluation"))
