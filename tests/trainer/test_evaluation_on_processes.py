"""A user's own dataset on two processes: every row is scored once, and no process waits for another."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithFlattening, default_data_collator

from gpt2_hf.data import FlatteningCollator

from .. import ranks
from ..faults import harness
from .helpers import BLOCKS, DOCUMENTS, KeepsBatchLosses, Stream, make_trainer

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server"),
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


CASES = {
    "labels": {"eval_dataset": ROWS},
    "few rows": {"eval_dataset": FEW_ROWS},
    "metrics": {"eval_dataset": ROWS, "compute_metrics": accuracy},
    "losses of batches": {"eval_dataset": FEW_ROWS, "kind": KeepsBatchLosses},
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


def score_as_rank(folder: str, environment: dict[str, str], fsdp: bool) -> None:
    """The body of one process of two."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    if fsdp:
        ranks.allow_fsdp_on_cpu()
    results = score(folder, fsdp)
    if environment["RANK"] == "0":
        (Path(folder) / "results.json").write_text(json.dumps(results))


@pytest.mark.parametrize("fsdp", [False, True], ids=["copies", "sharded"])
def test_two_processes_score_every_row_once(tmp_path, fsdp):
    """Rows, streams and flattened documents, with and without metrics: the figures are those of one process."""
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(harness.free_port()), "WORLD_SIZE": "2"}
    processes = []
    for rank in range(2):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        processes.append(harness.start_function(score_as_rank, str(tmp_path), environment, fsdp))
    assert harness.join(processes) == [0, 0]
    results = json.loads((tmp_path / "results.json").read_text())
    for name, expected in score(str(tmp_path / "one")).items():
        assert results[name] == pytest.approx(expected, abs=1e-5), name
