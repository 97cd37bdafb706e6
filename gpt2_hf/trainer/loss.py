"""transformers' Trainer with a loss per token: divided by the tokens that are scored, whoever counts them.

In: batches with `labels` or `shift_labels`. Out: the loss of an optimizer step, and of an evaluation batch.
Next stage: `exact_evaluation`.

What differs from the base class:
  - tokens are counted as the model scores them, whatever its class is called;
  - labels are smoothed inside this package's model, and in training alone;
  - teachers are learned from, in training alone (see `distillation`);
  - a loss of the user's own (`compute_loss` of a subclass, `compute_loss_func`) gets the logits it may ask for.
"""

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..model.packing import without_first_tokens
from ..runtime.temporary import temporarily
from .checkpointing import CheckpointingTrainer
from .distillation import Distillation

# Adapters of peft that put embeddings of their own before a row, from which its first token is predicted.
_WITH_EMBEDDINGS_BEFORE = ("PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")


def targets_of(batch: Any, scores_first: bool = False) -> torch.Tensor | None:
    """The tokens to be predicted, −100 where none is; `None` for a batch without labels.

    Args:
        batch: with `shift_labels` `[B, T]`, or `labels` `[B, T]`, or neither; one that is no mapping has no labels.
        scores_first: whether something before a row predicts its first token.

    Returns:
        int64 `[B, T]`, or `[B, T − 1]` where the labels are shifted here and the first token is not scored.
    """
    if not isinstance(batch, Mapping):
        return None
    if batch.get("shift_labels") is not None:
        return batch["shift_labels"]
    labels = batch.get("labels")
    if not isinstance(labels, torch.Tensor):
        return None
    if batch.get("cu_seq_lens_q") is not None:
        labels = without_first_tokens(labels, batch["cu_seq_lens_q"])
    return labels if scores_first else labels[..., 1:]


class LossTrainer(CheckpointingTrainer):
    """Computes the loss of a batch.

    Attributes:
        distillation: the teachers, if there are any.
    """

    label_smoother: Any
    _signature_columns: Any
    _left_out_at = 0  # the step before the last batches that were too few for one
    distillation: Distillation | None = None

    @property
    def plain_model(self) -> nn.Module:
        """The model without what was put around it: compilation, copies for several devices, an adapter."""
        model = self.unwrapped_model()
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def is_own_model(self) -> bool:
        """Whether the model is this package's."""
        return isinstance(self.plain_model, GPT2HFForCausalLM)

    def model_takes(self, argument: str) -> bool:
        """Whether the model is this package's, and its `forward` takes an argument, by name or among others."""
        if not self.is_own_model:
            return False
        parameters = inspect.signature(type(self.plain_model).forward).parameters
        return argument in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())

    @property
    def scores_first_token(self) -> bool:
        """Whether the first token of a row is scored too, since an adapter puts embeddings before it."""
        model = self.unwrapped_model()
        adapter = getattr(model, "active_peft_config", None)
        return getattr(adapter, "peft_type", None) in _WITH_EMBEDDINGS_BEFORE

    @property
    def overrides_loss(self) -> bool:
        """Whether a subclass, or an assignment to the instance, has taken the place of `compute_loss`."""
        return "compute_loss" in vars(self) or type(self).compute_loss is not LossTrainer.compute_loss

    @property
    def has_own_loss(self) -> bool:
        """Whether the loss is the user's, of which nobody knows that it is a cross-entropy."""
        return self.compute_loss_func is not None or self.overrides_loss

    @property
    def multiplies_by_processes(self) -> bool:
        """Whether a loss is divided by the tokens of all processes, and so multiplied by their number.

        Not what a `compute_loss_func` returns of which the user says that it is the mean of its batch.
        """
        # releases of transformers before 5.23 may not have it
        is_mean = self.compute_loss_func is not None and getattr(self, "loss_is_scaled_for_ga", None) is False
        return self.args.average_tokens_across_devices and not is_mean

    def _set_signature_columns_if_needed(self) -> None:
        # The base class would drop columns of the user's that the model takes by keyword, for itself or its blocks.
        super()._set_signature_columns_if_needed()
        if isinstance(model := self.plain_model, GPT2HFForCausalLM):
            further = {*inspect.signature(model.transformer.forward).parameters, "shift_labels"}
            self._signature_columns = list({*self._signature_columns, *filter(self.model_takes, further)})

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The summed token losses over the tokens of the whole accumulated batch on all processes.

        Labels are smoothed, and teachers asked, in training alone, so that the perplexity of an evaluation is one.
        """
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        smoother = self.label_smoother if smoothing else None
        if smoothing and self.is_own_model:  # which smooths itself, without logits
            inputs, smoother = {**inputs, "label_smoothing": smoothing}, None
        if model.training and self.distillation is not None:
            with self.accelerator.autocast():
                inputs = {**inputs, "summed_loss": self.distillation.read(inputs)}
        logits: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if model.training and (return_outputs or self.overrides_loss):
            # of use to a caller who asks for outputs alone, also where a subclass calls this
            logits = self.returned_logits(return_outputs or None)
        # The base class multiplies whatever a `compute_loss_func` returns.
        multiplied = temporarily(self.args, average_tokens_across_devices=self.multiplies_by_processes)
        with temporarily(self, label_smoother=smoother), multiplied, logits:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def returned_logits(self, wanted: bool | None) -> contextlib.AbstractContextManager[None]:
        """Let this package's model return logits, or none, where its caller does not say; `None`: as it does itself.

        Not among the inputs: a loss of the user's own may do something to each of these, and so may a `forward`.
        """
        model = self.plain_model
        is_own = isinstance(model, GPT2HFForCausalLM)
        return temporarily(model, returns_logits=wanted) if is_own else contextlib.nullcontext()

    def cache_by_arguments(self) -> contextlib.AbstractContextManager[None]:
        """The config of this package's model has the arguments' `use_cache`, False by default.

        Not always, as with the base class: what is saved would have it, and what is done with the model afterwards.
        """
        model = self.plain_model
        if not isinstance(model, GPT2HFForCausalLM):
            return contextlib.nullcontext()
        return temporarily(model.config, use_cache=self.args.use_cache)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        # A subclass with a loss of its own, which gets logits, may have a step of its own too.
        with self.returned_logits(self.overrides_loss or None):
            return super()._run_epoch(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass."""
        if not self.has_own_loss:  # then the model computes it, without a cache and without logits
            return super().training_step(model, inputs, num_items_in_batch)
        with self.cache_by_arguments(), self.returned_logits(self.overrides_loss or None):
            return super().training_step(model, inputs, num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The batches of an optimizer step, and the number of tokens that they score.

        On all processes; with `average_tokens_across_devices=False` on this one. Too few batches are no step.
        """
        batches = list(itertools.islice(epoch_iterator, num_batches))
        if len(batches) < num_batches:  # the end of a pass of unknown length: the base class asks for what there is
            if batches:
                self._say_what_is_left_out(len(batches))
            return [], None
        scores_first = self.scores_first_token
        targets = [targets_of(batch, scores_first) for batch in batches]
        # The base class counts the first token of a row too, where the model's class has an unusual name.
        counted = [{"labels": each, "shift_labels": each} for each in targets if each is not None]
        num_items = self._get_num_items_in_batch(counted, device)
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(torch.int64)  # mixed precision would round a floating-point number
        return batches, num_items

    def _say_what_is_left_out(self, num_batches: int) -> None:
        # The base class would add their gradient, whole, to that of the next step.
        step, wanted = self.state.global_step, self.args.gradient_accumulation_steps
        if step == self._left_out_at:  # as long as nothing was left out, that is 0
            raise UserError(
                f"--gradient_accumulation_steps {wanted} is more than a pass over the data has batches, {num_batches}"
            )
        if not self._left_out_at and self.is_world_process_zero():
            print(f"the last batches of each pass are left out: {num_batches} are no step of {wanted}", flush=True)
        self._left_out_at = step
