"""A user's own dataset on two processes: every row is scored once, and no process waits for another."""

import functools

import pytest
import torch
from transformers import DataCollatorWithFlattening, default_data_collator

from gpt2_hf import GPT2HFTrainer
from gpt2_hf.data import FlatteningCollator

from ..conftest import needs_fork_server
from .helpers import BLOCKS, DOCUMENTS, KeepsBatchLosses, Stream, make_trainer
from .processes import on_two

pytestmark = [
    pytest.mark.distributed,
    needs_fork_server,
]

# On two processes of five rows each: the last batches are full and of two rows, and of three rows and none.
ROWS, FEW_ROWS = BLOCKS[:17], BLOCKS[:13]

LISTS = [{"input_ids": document["input_ids"].tolist()} for document in DOCUMENTS]


def shifted(rows):
    """The same rows with targets that are shifted already."""
    return [{"input_ids": row["input_ids"][:-1], "shift_labels": row["labels"][1:]} for row in rows]


def accuracy(prediction):
    """How often the token that came next was the most probable one, of how many rows."""
    logits, labels = (torch.as_tensor(part) for part in (prediction.predictions, prediction.label_ids))
    right = (logits[:, :-1].argmax(-1) == labels[:, 1:])[labels[:, 1:] >= 0]
    return {"accuracy": right.double().mean().item(), "rows": len(labels)}


def mean_of_batch(outputs, labels, num_items_in_batch=None):
    """A loss that does not divide by the number that it is given."""
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class MeanOfBatch(GPT2HFTrainer):
    """Says that its `compute_loss_func` returns the mean of its batch."""

    loss_is_scaled_for_ga = False


class DividesByAll(GPT2HFTrainer):
    """Divides by the tokens of all processes, and undoes the mean of the gradients over them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(input_ids=inputs["input_ids"])
        logits, labels = outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


CASES = {
    "labels": {"eval_dataset": ROWS},
    "few rows": {"eval_dataset": FEW_ROWS},
    "metrics": {"eval_dataset": ROWS, "compute_metrics": accuracy},
    "losses of batches": {"eval_dataset": FEW_ROWS, "kind": KeepsBatchLosses},
    "mean of the batch": {"eval_dataset": FEW_ROWS, "kind": MeanOfBatch, "compute_loss_func": mean_of_batch},
    "divides by all": {"eval_dataset": FEW_ROWS, "kind": DividesByAll},
    "shifted labels": {"eval_dataset": shifted(FEW_ROWS)},
    "stream": {"eval_dataset": Stream(ROWS)},
    "short stream": {"eval_dataset": Stream(FEW_ROWS)},
    "shifted stream": {"eval_dataset": Stream(shifted(ROWS))},
    "stream with metrics": {"eval_dataset": Stream(ROWS), "compute_metrics": accuracy},
    "one row": {"eval_dataset": DOCUMENTS, "data_collator": FlatteningCollator()},
    "one row of another's": {"eval_dataset": LISTS, "data_collator": DataCollatorWithFlattening()},
}


def score(folder: str, fsdp: bool = False) -> dict[str, dict[str, float]]:
    """The metrics of each case."""
    results = {}
    for name, case in CASES.items():
        options = {"data_collator": default_data_collator, **case, "remove_unused_columns": False}
        if fsdp:  # a model is sharded when it is trained
            options |= {"fsdp": True, "max_steps": 1, "learning_rate": 1e-30, "train_dataset": case["eval_dataset"]}
            options |= {"eval_strategy": "no", "save_strategy": "no"}
        trainer = make_trainer(folder, **options)
        if fsdp:
            trainer.train()
        metrics = trainer.evaluate()
        known = ("eval_loss", "eval_tokens", "eval_accuracy", "eval_rows")
        results[name] = {key: float(metrics[key]) for key in known if key in metrics}
    return results


@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "sharded"])
def test_two_processes_score_every_row_once(tmp_path, fsdp):
    """Rows, streams, flattened documents, metrics, losses of the user's own: the figures are those of one process."""
    results, _ = on_two(functools.partial(score, fsdp=fsdp), tmp_path, fsdp)
    for name, expected in score(str(tmp_path / "one")).items():
        assert results[name] == pytest.approx(expected, abs=1e-5), name
