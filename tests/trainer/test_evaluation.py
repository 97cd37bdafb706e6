"""Evaluation with metrics, losses and splits of the user's own: as with transformers' Trainer, and exact."""

import contextlib
import json
import math
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from transformers import DynamicCache, EarlyStoppingCallback, Trainer, TrainingArguments, default_data_collator

from gpt2_hf import GPT2HFForCausalLM, GPT2HFTrainer
from gpt2_hf.data import DocumentSamples, MixedSamples
from gpt2_hf.errors import UserError
from gpt2_hf.trainer.callbacks import EvaluationInterruptedError

from ..conftest import REPOSITORY, read_json
from ..data_fixtures import documents_of
from ..faults.harness import free_port
from ..tiny_models import random_ids
from .helpers import (
    BLOCKS,
    COLLATORS,
    DOCUMENTS,
    KeepsBatchLosses,
    LossOfOutputs,
    Stream,
    assert_exact,
    logged,
    make_model,
    make_trainer,
    settings,
    true_loss,
)


def accuracy(prediction):
    """Of the next token, with logits or with ids that were chosen already; labels are shifted as in transformers."""
    predicted = prediction.predictions
    predicted = predicted.argmax(-1) if predicted.ndim == 3 else predicted
    labels = prediction.label_ids
    assert predicted.shape == labels.shape
    scored = labels[:, 1:] != -100
    return {"hits": int(((predicted[:, :-1] == labels[:, 1:]) & scored).sum()), "scored": int(scored.sum())}


def choose(logits, labels):
    return logits.argmax(dim=-1)


def data_of(collator):
    return {"data_collator": COLLATORS[collator], "eval_dataset": BLOCKS[:11] if collator == "stock" else DOCUMENTS}


@pytest.mark.parametrize("collator", ["padded", "padding_free", "stock"])
def test_metrics_are_computed_and_the_loss_stays_exact(tmp_path, collator):
    """f sees logits and labels one row a sample, for each collator and batch size; loss and perplexity are exact."""
    rows = data_of(collator)["eval_dataset"]
    expected = true_loss(make_model(), rows)
    for batch_size in (1, 3, 8):
        options = {"per_device_eval_batch_size": batch_size, "compute_metrics": accuracy}
        metrics = make_trainer(tmp_path, **data_of(collator), **options).evaluate()
        assert_exact(metrics, expected)
        assert metrics["eval_scored"] == metrics["eval_tokens"] == sum(len(row["input_ids"]) - 1 for row in rows)
        chosen = make_trainer(tmp_path, **data_of(collator), **options, preprocess_logits_for_metrics=choose)
        assert chosen.evaluate()["eval_hits"] == metrics["eval_hits"]
        assert metrics["eval_hits"] == hits_of(make_model(), rows)


@pytest.mark.parametrize("collator", ["padded", "padding_free"])
def test_metrics_of_several_texts_have_every_row(tmp_path, collator):
    """Each text has filler in its last batch, so the very last may have more rows than the split leaves over."""
    model, ids = make_model(), random_ids(9, 12, seed=7)
    one, two = (DocumentSamples(documents_of(rows.tolist()), 12) for rows in (ids[:5], ids[5:]))
    samples = MixedSamples({"one": one, "two": two})
    data = {"data_collator": COLLATORS[collator], "eval_dataset": samples, "compute_metrics": accuracy}
    metrics = make_trainer(tmp_path, model=model, **data, per_device_eval_batch_size=4).evaluate()
    assert metrics["eval_scored"] == metrics["eval_tokens"] == 9 * 11
    assert metrics["eval_hits"] == hits_of(make_model(), [{"input_ids": row} for row in ids])


def test_a_collator_of_the_users_own_gets_no_filler(tmp_path, monkeypatch):
    """Whose mark it would not read: a short batch in one process; where batches must be filled up, it is refused."""
    rows, samples = [], DocumentSamples(documents_of(random_ids(13, 12).tolist()), 12)

    def collate(batch):
        rows.extend(sample["input_ids"].tolist() for sample in batch)
        ids = torch.tensor(rows[-len(batch) :])
        return {"input_ids": ids, "labels": ids}

    options = {"data_collator": collate, "per_device_train_batch_size": 8, "max_steps": 2, "save_strategy": "no"}
    trainer = make_trainer(tmp_path, train_dataset=samples, eval_strategy="no", **options)
    trainer.train()
    assert sorted(rows) == sorted(sample["input_ids"].tolist() for sample in samples)
    mixed = MixedSamples({"one": samples})
    for refused in (lambda: trainer.evaluate(mixed), lambda: make_trainer(tmp_path, eval_dataset=mixed, **options)):
        with pytest.raises(UserError, match="use PaddingCollator, FlatteningCollator, or a subclass of one"):
            refused()
    monkeypatch.setattr(type(trainer.args), "world_size", 2)
    with pytest.raises(UserError, match="only this package's collators know"):
        make_trainer(tmp_path, train_dataset=samples, **options)


def hits_of(model, rows):
    """Right guesses of the model, row by row."""
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    with torch.no_grad():
        return sum(int((model(row[None]).logits[0, :-1].argmax(-1) == row[1:]).sum()) for row in ids)


def test_training_with_metrics_finds_the_best_by_them(tmp_path):
    """`metric_for_best_model` may be a metric of f, and a higher one is better unless its name says loss."""
    values = iter([1.0, 2.0])
    trainer = make_trainer(tmp_path, compute_metrics=lambda p: {"up": next(values)}, metric_for_best_model="up")
    trainer.train()
    assert logged(trainer, "eval_up") == [1.0, 2.0] and len(logged(trainer, "eval_loss")) == 2
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (2.0, 4)
    assert (tmp_path / "best_model" / "model.safetensors").is_file()


@pytest.mark.parametrize("collator", ["padded", "padding_free", "stock"])
def test_metrics_by_batches(tmp_path, collator):
    """`batch_eval_metrics` hands f one batch after the other, and asks for the result at the last."""
    counts = np.zeros(2, dtype=int)

    def by_batch(prediction, compute_result):
        logits, labels = (value.numpy() for value in (prediction.predictions, prediction.label_ids))
        part = accuracy(type(prediction)(predictions=logits, label_ids=labels))
        counts[:] += part["hits"], part["scored"]
        return {"hits": int(counts[0]), "scored": int(counts[1])} if compute_result else {}

    trainer = make_trainer(tmp_path, **data_of(collator), compute_metrics=by_batch, batch_eval_metrics=True)
    metrics = trainer.evaluate()
    assert metrics["eval_scored"] == metrics["eval_tokens"]
    assert_exact(metrics, true_loss(make_model(), data_of(collator)["eval_dataset"]))


def test_metrics_may_ask_for_inputs_and_losses(tmp_path):
    """`include_for_metrics`; the loss is exact all the same, and one row a sample is refused where there is none."""
    shapes = {}

    def look(prediction):
        shapes["inputs"], shapes["losses"] = prediction.inputs.shape, prediction.losses.shape
        return {}

    options = {"compute_metrics": look, "include_for_metrics": ["inputs", "loss"]}
    assert_exact(make_trainer(tmp_path, **options).evaluate(), true_loss(make_model(), BLOCKS[:11]))
    assert shapes == {"inputs": (11, 32), "losses": (11,)}
    with pytest.raises(UserError, match="include_for_metrics"):
        make_trainer(tmp_path / "refused", **data_of("padding_free"), **options)
    assert not (tmp_path / "refused").exists()


def test_an_evaluation_outside_of_training_suits_changing_shapes(tmp_path, monkeypatch):
    """The final test score is one: a GPU would plan its attention for each length."""
    entered = []

    @contextlib.contextmanager
    def enter(device_type, shapes_change):
        entered.append((device_type, shapes_change))
        yield

    monkeypatch.setattr("gpt2_hf.trainer.gpt2_trainer.suit_changing_shapes", enter)
    make_trainer(tmp_path).evaluate()
    assert entered == [("cpu", True)]


def test_a_subclass_sees_the_loss_of_each_batch(tmp_path):
    """An overridden `prediction_step` gets the mean from the one here, with metrics and without."""
    rows = BLOCKS[:11]
    options = {"kind": KeepsBatchLosses, "per_device_eval_batch_size": 4, "eval_dataset": rows}
    for metrics in ({}, {"compute_metrics": lambda prediction: {}}):
        trainer = make_trainer(tmp_path, **options, **metrics)
        assert_exact(trainer.evaluate(), true_loss(make_model(), rows))
        expected = [true_loss(make_model(), rows[first : first + 4]) for first in (0, 4, 8)]
        assert trainer.batch_losses == pytest.approx(expected, abs=1e-6)


def test_a_metric_takes_the_place_of_one_of_that_name(tmp_path):
    """As in transformers, f may give its own loss."""
    assert make_trainer(tmp_path, compute_metrics=lambda p: {"loss": 7.0}).evaluate()["eval_loss"] == 7.0


@pytest.mark.parametrize("collator", ["padded", "padding_free", "stock"])
def test_predict_returns_what_the_stock_trainer_returns(tmp_path, collator):
    """Logits, labels and the loss; with this package's collators those of the padded rows with labels."""
    rows = BLOCKS[:7] if collator == "stock" else DOCUMENTS[:7]
    ours = make_trainer(tmp_path / "ours", data_collator=COLLATORS[collator]).predict(rows)
    stock = Trainer(
        make_model(),
        TrainingArguments(str(tmp_path / "stock"), **settings()),
        padded_with_labels,
        eval_dataset=rows,
    ).predict(rows)
    assert ours.predictions.shape == stock.predictions.shape
    np.testing.assert_array_equal(ours.label_ids, stock.label_ids)
    scored = stock.label_ids[:, 1:] != -100
    np.testing.assert_allclose(ours.predictions[:, :-1][scored], stock.predictions[:, :-1][scored], atol=1e-5)
    assert_exact(ours.metrics, true_loss(make_model(), rows), "test")


def padded_with_labels(rows):
    """A batch as transformers' collators make it."""
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    pad = {
        name: torch.nn.utils.rnn.pad_sequence(ids, True, value)
        for name, value in (("input_ids", 96), ("labels", -100))
    }
    return pad


def test_predict_without_labels_gives_logits_alone(tmp_path):
    """Rows that have no labels: no loss, and no metric of one."""
    for ignored in (None, ["hidden_states"]):
        rows = [{"input_ids": row["input_ids"]} for row in BLOCKS[:7]]
        output = make_trainer(tmp_path).predict(rows, ignore_keys=ignored)
        assert output.predictions.shape == (7, 32, 97) and output.label_ids is None
        assert not {"test_loss", "test_perplexity", "test_tokens"} & output.metrics.keys()


def test_predict_after_an_interrupted_evaluation(tmp_path):
    """Nothing of the evaluation that was broken off is left."""
    trainer = make_trainer(tmp_path)
    broken = trainer.callback_handler.on_prediction_step

    def interrupt(*args):
        raise EvaluationInterruptedError

    trainer.callback_handler.on_prediction_step = interrupt
    with pytest.raises(EvaluationInterruptedError):
        trainer.evaluate()
    trainer.callback_handler.on_prediction_step = broken
    assert trainer.predict(BLOCKS[:3]).predictions.shape[0] == 3
    assert_exact(trainer.evaluate(), true_loss(make_model(), BLOCKS[:11]))


RANKS = """
import json, sys
from tests.trainer.helpers import BLOCKS, make_trainer
from tests.trainer.test_evaluation import accuracy

trainer = make_trainer(sys.argv[1], compute_metrics=accuracy, ddp_backend="gloo")
results = {"eval": trainer.evaluate()}
output = trainer.predict(BLOCKS[:11])
results["rows"] = len(output.predictions)
if trainer.is_world_process_zero():
    print(json.dumps(results))
"""


@pytest.mark.slow
def test_metrics_on_two_processes(tmp_path):
    """Eleven rows in batches of five: none counts twice, in the loss or in the metrics."""
    (tmp_path / "ranks.py").write_text(RANKS)
    environment = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "ranks.py"), str(tmp_path / "run")],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=240)[0] for rank in ranks]
    results = json.loads(printed[0].splitlines()[-1])
    assert_exact(results["eval"], true_loss(make_model(), BLOCKS[:11]))
    assert results["eval"]["eval_scored"] == results["eval"]["eval_tokens"] == 11 * 31
    assert results["eval"]["eval_hits"] == hits_of(make_model(), BLOCKS[:11])
    assert results["rows"] == 11


# ---- a loss of the user's own ----


class TenTimes(GPT2HFTrainer):
    """A subclass that weighs the loss."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (10 * result[0], result[1]) if return_outputs else 10 * result


class FromLogits(GPT2HFTrainer):
    """A subclass as tutorials show it: the model computes its loss, and logits are taken from the outputs."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        labels = inputs.get("labels")
        outputs = model(**inputs)
        logits = outputs.get("logits")[:, :-1].flatten(0, 1)
        loss = 10 * torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten())
        return (loss, outputs) if return_outputs else loss


def ten_times(outputs, labels, num_items_in_batch=None):
    """A `compute_loss_func` as in transformers' documentation."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return 10 * total / num_items_in_batch


@pytest.mark.parametrize(
    ("kind", "given"),
    [(TenTimes, {}), (FromLogits, {}), (GPT2HFTrainer, {"compute_loss_func": ten_times})],
    ids=["subclass", "from_logits", "function"],
)
def test_a_loss_of_the_users_own_is_trained_on_and_evaluated(tmp_path, kind, given):
    """eval_loss is the mean of that loss over the scored tokens, whatever the batch; no perplexity is made of it."""
    expected = 10 * true_loss(make_model(), BLOCKS[:11])
    for batch_size in (3, 8):
        trainer = make_trainer(tmp_path, kind, per_device_eval_batch_size=batch_size, learning_rate=1e-4, **given)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-4)
        assert "eval_perplexity" not in metrics
    trainer.train()
    first = logged(trainer, "loss")[0]
    assert first > 10 * 0.8 * math.log(97) and not logged(trainer, "perplexity")
    assert logged(trainer, "eval_loss")[-1] == pytest.approx(10 * true_loss(trainer.model, BLOCKS[:11]), abs=1e-4)


class RDrop(GPT2HFTrainer):
    """A loss that does the same to each of the inputs, and asks for logits too."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**{name: torch.cat([each, each]) for name, each in inputs.items()})
        loss = outputs.loss + torch.nn.functional.mse_loss(*outputs.logits.chunk(2))
        return (loss, outputs) if return_outputs else loss


class OwnStep(GPT2HFTrainer):
    """A step of the user's own, which asks for outputs, or leaves that to a loss of the user's own."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        inputs = self._prepare_inputs(inputs)
        loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        loss = loss + outputs.logits.logsumexp(-1).square().mean()
        self.accelerator.backward(loss)
        return loss.detach()


class OwnStepAndLoss(OwnStep, FromLogits):
    """Both."""


@pytest.mark.parametrize("kind", [RDrop, OwnStep, OwnStepAndLoss])
def test_a_loss_or_a_step_of_the_users_own_gets_logits(tmp_path, kind):
    """Whatever it does to the inputs, and whoever makes the step; afterwards the model is as it was."""
    trainer = make_trainer(tmp_path, kind, max_steps=2)
    trainer.train()
    assert len(logged(trainer, "loss")) == 2 and math.isfinite(logged(trainer, "eval_loss")[0])
    ids = BLOCKS[0]["input_ids"][None]
    assert trainer.model.returns_logits is None and trainer.model.train()(ids, labels=ids).logits is None


@pytest.mark.parametrize(
    "given", [{}, {"kind": LossOfOutputs}, {"compute_loss_func": ten_times}], ids=["model", "class", "function"]
)
def test_no_cache_is_built_for_a_loss(tmp_path, monkeypatch, given):
    """Nor for its evaluation; for a loss of one's own the arguments decide. The model saves and uses its own."""
    built, begin = [], DynamicCache.__init__

    def count(cache, *args, **kwargs):
        built.append(cache)
        begin(cache, *args, **kwargs)

    monkeypatch.setattr(DynamicCache, "__init__", count)
    for own in (True, False):
        model = make_model()
        model.config.use_cache = own
        trainer = make_trainer(tmp_path / str(own), model=model, **given)
        trainer.train()
        assert not built
        for folder in ("checkpoint-4", "best_model"):
            assert read_json(tmp_path / str(own) / folder / "config.json")["use_cache"] is own
        trainer.model.generate(BLOCKS[0]["input_ids"][None, :4], max_new_tokens=2)
        assert len(built) == 1
        built.clear()
    make_trainer(tmp_path, use_cache=True, max_steps=1, eval_strategy="no", **given).train()
    assert len(built) == len(given)


def test_a_loss_function_needs_labels(tmp_path):
    """With this package's collators it is refused before anything is written."""
    for name in ("padded", "padding_free"):
        with pytest.raises(UserError, match="compute_loss_func needs labels"):
            make_trainer(tmp_path / "run", compute_loss_func=ten_times, data_collator=COLLATORS[name])
    assert not (tmp_path / "run").exists()


def test_smoothing_is_for_training_alone(tmp_path):
    """eval_loss is that of the labels as they are; stock GPT-2 is smoothed too."""
    first = {}
    for which, smoothing in (("ours", 0.3), ("stock", 0.3), ("stock", 0.0)):
        trainer = make_trainer(tmp_path, model=make_model(which), label_smoothing_factor=smoothing, max_steps=1)
        assert_exact(trainer.evaluate(), true_loss(make_model(), BLOCKS[:11]))
        trainer.train()
        first[which, smoothing] = logged(trainer, "loss")[0]
        assert len(logged(trainer, "perplexity")) == (0 if smoothing else 1)  # a smoothed loss has none
    assert first["ours", 0.3] == pytest.approx(first["stock", 0.3], abs=1e-5)
    assert abs(first["stock", 0.3] - first["stock", 0.0]) > 1e-3


class CopiedLoss(GPT2HFTrainer):
    """A subclass whose loss is a copy of transformers', with which many of their own begin."""

    compute_loss = Trainer.compute_loss


def test_a_copy_of_transformers_loss_smooths_as_that_does(tmp_path):
    """It asks for the `label_smoother`, and for labels and logits."""
    first = {}
    for kind, smoothing in ((GPT2HFTrainer, 0.3), (CopiedLoss, 0.3), (CopiedLoss, 0.0)):
        options = {"eval_strategy": "no", "save_strategy": "no", "max_steps": 1}
        trainer = make_trainer(tmp_path, kind, label_smoothing_factor=smoothing, **options)
        trainer.train()
        first[kind, smoothing] = logged(trainer, "loss")[0]
    assert first[CopiedLoss, 0.3] == pytest.approx(first[GPT2HFTrainer, 0.3], abs=1e-5)
    assert abs(first[CopiedLoss, 0.3] - first[CopiedLoss, 0.0]) > 1e-3


# ---- splits ----

SPLITS = {"news": BLOCKS[:7], "books": BLOCKS[7:18]}


def test_several_splits(tmp_path, capsys):
    """Each is exact and shown, and one of them decides which model is best."""
    trainer = make_trainer(tmp_path, eval_dataset=SPLITS, metric_for_best_model="eval_news_loss")
    before = {name: true_loss(make_model(), rows) for name, rows in SPLITS.items()}
    metrics = trainer.evaluate()
    for name, expected in before.items():
        assert_exact(metrics, expected, f"eval_{name}")
    trainer.train()
    assert trainer.state.best_metric == min(logged(trainer, "eval_news_loss"))
    assert (tmp_path / "best_model" / "model.safetensors").is_file()
    assert "validation loss of news" in capsys.readouterr().out
    assert len(trainer.watch.recent["evaluate"]) == 3 and len(logged(trainer, "eval_books_loss")) == 2


def test_the_loss_over_all_splits_decides_unless_one_is_chosen(tmp_path):
    """With the default metric the best model is that of the lowest loss over the tokens of all splits."""
    trainer = make_trainer(tmp_path, eval_dataset=SPLITS, save_steps=4)
    assert_exact(trainer.evaluate(), true_loss(make_model(), BLOCKS[:18]))
    trainer.train()
    assert trainer.state.best_metric == min(logged(trainer, "eval_loss")) and trainer.state.best_global_step
    assert (tmp_path / "best_model" / "model.safetensors").is_file()
    with pytest.raises(UserError, match="--early_stopping_patience is told of one split"):
        make_trainer(tmp_path, eval_dataset=SPLITS, early_stopping_patience=2)


def test_a_callback_that_waits_for_a_loss_over_all_splits_is_refused(tmp_path):
    """transformers' own callback for it would be told of one split after the other, and never stop."""
    for callback in (EarlyStoppingCallback, EarlyStoppingCallback(2)):
        with pytest.raises(UserError, match=r"EarlyStoppingCallback is told of one split.*eval_news_loss"):
            make_trainer(tmp_path, eval_dataset=SPLITS, callbacks=[callback], load_best_model_at_end=True)


def test_columns_that_the_model_takes_are_kept(tmp_path):
    """Targets that are shifted already, in rows and in a dataset, alone and beside labels; other columns go."""
    rows = [{"input_ids": row["input_ids"][:-1], "shift_labels": row["labels"][1:]} for row in BLOCKS[:11]]
    expected = true_loss(make_model(), BLOCKS[:11])
    misleading = [{**row, "labels": torch.zeros_like(row["input_ids"]), "further": 1} for row in rows]
    for split in (rows, misleading, datasets.Dataset.from_list([_lists(row) for row in misleading])):
        trainer = make_trainer(tmp_path, train_dataset=split, eval_dataset=split, save_strategy="no")
        assert_exact(trainer.evaluate(), expected)
        trainer.train()
        assert logged(trainer, "loss")[0] == pytest.approx(expected, abs=0.5)


def _lists(row):
    """A row without tensors."""
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in row.items()}


def test_splits_of_unknown_size(tmp_path):
    """A stream is scored exactly, and its time is learnt from the first evaluation."""
    trainer = make_trainer(tmp_path, eval_dataset={"a": Stream(BLOCKS[:7]), "b": BLOCKS[7:9]})
    for _ in range(3):
        trainer.watch.add("step", 1.0)
    assert trainer.remaining_work().evaluation == math.inf
    metrics = trainer.evaluate()
    assert_exact(metrics, true_loss(make_model(), BLOCKS[:7]), "eval_a")
    assert trainer.remaining_work().evaluation == trainer.watch.longest("evaluate")


def test_time_of_several_splits(tmp_path):
    """Before the first evaluation the sizes are added up."""
    trainer = make_trainer(tmp_path, eval_dataset=SPLITS)
    for _ in range(3):
        trainer.watch.add("step", 1.0)
    assert trainer.remaining_work().evaluation == pytest.approx(0.5 * 18 / 4)


def test_an_interrupted_evaluation_of_several_splits_is_made_up_for_once(tmp_path):
    """The split that was scored before the interruption does not stand twice in the history."""
    whole = make_trainer(tmp_path / "whole", eval_dataset=SPLITS)
    whole.train()
    trainer = make_trainer(tmp_path / "run", eval_dataset=SPLITS)
    steps = iter(range(100))
    once = trainer.callback_handler.on_prediction_step

    def interrupt(*args):
        if next(steps) == 3:  # in the second split of the first evaluation
            raise EvaluationInterruptedError
        return once(*args)

    trainer.callback_handler.on_prediction_step = interrupt
    trainer.train()
    assert trainer.state.global_step == 2 and not logged(trainer, "eval_news_loss")
    resumed = make_trainer(tmp_path / "run", eval_dataset=SPLITS)
    resumed.train(resume_from_checkpoint=True)
    for name in ("loss", "eval_news_loss", "eval_books_loss"):
        assert logged(resumed, name) == logged(whole, name)


def test_default_collator_is_stocks(tmp_path):
    """Without a collator the base class chooses, as always."""
    assert make_trainer(tmp_path, data_collator=None).data_collator is default_data_collator


def test_a_stream_of_documents_is_trained_and_scored_in_one_row(tmp_path):
    """An iterable dataset of the user's own, with the collator that pads nothing: as from a list."""
    losses = []
    for documents in (DOCUMENTS, Stream(DOCUMENTS)):
        options = {"data_collator": COLLATORS["padding_free"], "remove_unused_columns": False, "save_strategy": "no"}
        trainer = make_trainer(tmp_path, train_dataset=Stream(DOCUMENTS), eval_dataset=documents, **options)
        trainer.train()
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], abs=1e-6)


class Mean(GPT2HFForCausalLM):
    """A model with a loss of its own: the mean of the batch, whatever number it is given."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        kwargs.pop("num_items_in_batch", None)
        outputs = super().forward(input_ids, **kwargs | {"return_logits": True})
        outputs.loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return outputs


def test_a_model_whose_loss_is_a_mean(tmp_path):
    """`**kwargs` in its forward do not say that it heeds them: the mean counts by the tokens of its batch."""
    plain = make_model()
    model = Mean(plain.config)
    model.load_state_dict(plain.state_dict())
    assert_exact(make_trainer(tmp_path, model=model).evaluate(), true_loss(plain, BLOCKS[:11]))


def test_a_model_that_is_not_told_the_number_of_tokens(tmp_path):
    """With `accepts_loss_kwargs = False`, of its class or in the Trainer, the loss of this package's is a mean too."""
    for collator in COLLATORS:
        data = data_of(collator)
        trainer = make_trainer(tmp_path, **data)
        expected = true_loss(trainer.model, data["eval_dataset"])
        trainer.model_accepts_loss_kwargs = False
        assert_exact(trainer.evaluate(), expected)
