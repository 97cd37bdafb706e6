"""What the tests of the Trainer share: a tiny model, rows with labels, and a Trainer of four steps around them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainingArguments, default_data_collator

from gpt2_hf import GPT2HFTrainer, GPT2HFTrainingArguments
from gpt2_hf.data import FlatteningCollator, PaddingCollator

from ..tiny_models import make_stock, random_ids, twin_of

BLOCKS = [{"input_ids": row, "labels": row} for row in random_ids(24, 32)]
LENGTHS = [9, 30, 4, 17, 25, 12, 3, 28, 20, 7, 14]
# as the data stage gives them: without labels, of unequal length
DOCUMENTS = [{"input_ids": ids[:n].numpy()} for ids, n in zip(random_ids(11, 32, seed=5), LENGTHS, strict=True)]
COLLATORS = {"padded": PaddingCollator(96), "padding_free": FlatteningCollator(), "stock": default_data_collator}


class Stream(IterableDataset):
    """Rows whose number nobody knows."""

    def __init__(self, rows: Sequence[Any]):
        self.rows = rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


def make_model(which: str = "ours") -> Any:
    """Stock GPT-2, or this package's model with the same weights."""
    stock = make_stock("sdpa")
    return stock if which == "stock" else twin_of(stock)


def settings(**options: Any) -> dict[str, Any]:
    """Quick options that transformers' arguments have too."""
    quick = {"max_steps": 4, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    quick |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 5, "warmup_steps": 0}
    return quick | {"learning_rate": 1e-3, "report_to": "none", "use_cpu": True, "disable_tqdm": True} | options


def make_trainer(folder: Any, kind: type = GPT2HFTrainer, model: Any = None, plain: bool = False, **given: Any) -> Any:
    """A Trainer on `BLOCKS`; `given` are training arguments and arguments of the Trainer."""
    names = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "model_init", "compute_loss_func")
    names += ("compute_metrics", "callbacks", "optimizers", "optimizer_cls_and_kwargs", "job")
    names += ("preprocess_logits_for_metrics", "teachers")
    of_trainer = {name: given.pop(name) for name in names if name in given}
    data = {"data_collator": default_data_collator, "train_dataset": BLOCKS, "eval_dataset": BLOCKS[:11]}
    args_kind = TrainingArguments if plain else GPT2HFTrainingArguments
    own = {} if plain else {"precision": "fp32", "max_training_hours": None}
    if model is None and "model_init" not in of_trainer:
        model = make_model()
    return kind(model, args_kind(str(folder), **settings(**(own | given))), **(data | of_trainer))


class KeepsBatchLosses(GPT2HFTrainer):
    """A subclass that looks at the loss of each batch of an evaluation, as people do for losses by sample."""

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step, with its loss kept."""
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        self.batch_losses = [*getattr(self, "batch_losses", []), loss.item()]
        return loss, logits, labels


class LossOfOutputs(GPT2HFTrainer):
    """A tutorial's subclass, which hands the model no labels."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean of the batch."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


class Overflows(GPT2HFTrainer):
    """Whose second loss is not finite, as in fp16, where the step is skipped."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The step; NaN is what it returns of the second."""
        loss = super().training_step(*args, **kwargs)
        return loss * math.nan if self.state.global_step == 1 else loss


def true_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """The sum of token losses over the number of scored tokens, row by row in float64."""
    total, tokens = 0.0, 0
    model.eval()
    for row in rows:
        ids = torch.as_tensor(row["input_ids"])[None]
        with torch.no_grad():
            log_probabilities = model(input_ids=ids).logits.double().log_softmax(-1)
        total -= log_probabilities[:, :-1].gather(-1, ids[:, 1:, None]).sum().item()
        tokens += ids.shape[1] - 1
    return total / tokens


def logged(trainer: Any, name: str) -> list[float]:
    """Every value of that name in the log."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_exact(metrics: dict[str, float], expected: float, prefix: str = "eval") -> None:
    """Loss to 1e-5, and a perplexity that is its exponential."""
    assert abs(metrics[f"{prefix}_loss"] - expected) < 1e-5
    assert abs(metrics[f"{prefix}_perplexity"] / math.exp(expected) - 1) < 1e-4
