"""Under transformers' own Trainer, the model behaves as stock GPT-2 with the same weights does."""

import copy

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments, default_data_collator

from ..tiny_models import VOCAB_SIZE, make_stock, random_ids, twin_of
from ..trainer.helpers import BLOCKS, logged

TOLERANCE = 1e-5


def padded_rows():
    """Rows of unequal length, padded on the right, with a mask; the padding is not scored."""
    rows = []
    for i, ids in enumerate(random_ids(24, 32, seed=3)):
        length = 32 - i % 11
        real = torch.arange(32) < length
        rows.append({"input_ids": ids, "attention_mask": real.long(), "labels": ids.masked_fill(~real, -100)})
    return rows


def make_trainer(which, folder, data=BLOCKS, model=None, trainer_options=None, **options):
    """The stock Trainer with stock GPT-2 or with this package's twin of it."""
    stock = make_stock("sdpa")
    stock.loss_type = "ForCausalLM"  # its class name hides from transformers that its loss shifts the labels
    if model is None:
        model = stock if which == "stock" else twin_of(stock)
    settings = {"max_steps": 4, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 5}
    settings |= {"optim": "sgd", "learning_rate": 0.01, "save_strategy": "no"}
    args = TrainingArguments(
        folder / which, use_cpu=True, report_to="none", disable_tqdm=True, seed=7, **(settings | options)
    )
    collator = {"data_collator": default_data_collator}
    return Trainer(model, args, train_dataset=data, eval_dataset=data[:11], **collator, **(trainer_options or {}))


def assert_same_training(ours, stock):
    """Losses, gradient norms and evaluations of each step, and the weights at the end."""
    for name in ("loss", "grad_norm", "eval_loss", "train_loss"):
        assert len(logged(ours, name)) == len(logged(stock, name)) > 0, name
        np.testing.assert_allclose(logged(ours, name), logged(stock, name), atol=TOLERANCE, rtol=TOLERANCE)
    if "sgd" in ours.args.optim:  # Adam's steps have the size of the rate even where the gradient is only rounding
        weights = stock.model.state_dict()
        for name, weight in ours.model.state_dict().items():
            torch.testing.assert_close(weight, weights[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("rows", "smoothing", "accumulation"),  # each value with each of the others
    [("blocks", 0.0, 1), ("blocks", 0.1, 2), ("padded", 0.0, 2), ("padded", 0.1, 1)],
)
def test_training_and_evaluation_equal_stocks(tmp_path, rows, smoothing, accumulation):
    """Losses per step, eval_loss and weights are stock GPT-2's, with smoothed labels and accumulation too."""
    data = BLOCKS if rows == "blocks" else padded_rows()
    options = {"label_smoothing_factor": smoothing, "gradient_accumulation_steps": accumulation}
    if accumulation == 1:
        options |= {"optim": "adamw_torch", "learning_rate": 1e-3}
    trainers = [make_trainer(which, tmp_path, data, **options) for which in ("ours", "stock")]
    for trainer in trainers:
        assert trainer.label_names == ["labels"]
        trainer.train()
    assert_same_training(*trainers)
    ours, stock = (trainer.evaluate()["eval_loss"] for trainer in trainers)
    assert ours == pytest.approx(stock, abs=TOLERANCE)


def test_a_row_without_labels_changes_as_little_as_with_stock(tmp_path):
    """As where an answer was cut off: the step has a gradient of 0, though its loss is no number in stock GPT-2."""
    data = [*BLOCKS[:3]]
    data[1] = {**data[1], "labels": torch.full_like(data[1]["labels"], -100)}
    options = {"per_device_train_batch_size": 1, "max_steps": 3, "eval_strategy": "no"}
    options |= {"train_sampling_strategy": "sequential"}
    trainers = [make_trainer(which, tmp_path, data, **options) for which in ("ours", "stock")]
    for trainer in trainers:
        trainer.train()
    norms = [logged(trainer, "grad_norm") for trainer in trainers]
    assert norms[0][1] == norms[1][1] == 0
    np.testing.assert_allclose(*norms, atol=TOLERANCE, rtol=TOLERANCE)
    weights = trainers[1].model.state_dict()
    for name, weight in trainers[0].model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("label_names", [None, ["labels"]])
def test_predictions_equal_stocks(tmp_path, label_names):
    """`predict` returns logits, labels and loss, as with stock GPT-2, and with `label_names` given too."""
    ours, stock = (
        make_trainer(which, tmp_path, label_names=label_names).predict(BLOCKS[:7]) for which in ("ours", "stock")
    )
    assert ours.predictions.shape == stock.predictions.shape == (7, 32, VOCAB_SIZE)
    np.testing.assert_allclose(ours.predictions, stock.predictions, atol=TOLERANCE)
    np.testing.assert_array_equal(ours.label_ids, stock.label_ids)
    assert ours.metrics["test_loss"] == pytest.approx(stock.metrics["test_loss"], abs=TOLERANCE)


def test_predictions_without_labels_are_logits(tmp_path):
    """Rows that have no labels give logits and no loss."""
    data = [{"input_ids": row["input_ids"]} for row in BLOCKS[:7]]
    ours, stock = (make_trainer(which, tmp_path).predict(data) for which in ("ours", "stock"))
    np.testing.assert_allclose(ours.predictions, stock.predictions, atol=TOLERANCE)
    assert ours.label_ids is None and "test_loss" not in ours.metrics


def accuracy(prediction):
    """Of the next token, from ids that `preprocess_logits_for_metrics` chose."""
    assert prediction.predictions.shape == prediction.label_ids.shape
    return {"accuracy": float((prediction.predictions[:, :-1] == prediction.label_ids[:, 1:]).mean())}


def test_metrics_equal_stocks(tmp_path):
    """`compute_metrics` and `preprocess_logits_for_metrics` see what they see with stock GPT-2."""
    functions = {
        "compute_metrics": accuracy,
        "preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(dim=-1),
    }
    trainers = [make_trainer(which, tmp_path, trainer_options=functions) for which in ("ours", "stock")]
    for trainer in trainers:
        trainer.train()
    ours, stock = (logged(trainer, "eval_accuracy") for trainer in trainers)
    assert len(ours) == 2 and ours == stock


def weighted_loss(outputs, labels, num_items_in_batch=None):
    """A loss of the user's own: ten times the cross-entropy of the logits."""
    logits = outputs.logits[:, :-1].flatten(0, 1)
    total = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return 10 * total / (labels[:, 1:].numel() if num_items_in_batch is None else num_items_in_batch)


def test_a_loss_function_of_the_users_own_equals_stocks(tmp_path):
    """`compute_loss_func` gets logits in training mode and decides the loss."""
    function = {"compute_loss_func": weighted_loss}
    trainers = [
        make_trainer(which, tmp_path, trainer_options=function, learning_rate=1e-3) for which in ("ours", "stock")
    ]
    for trainer in trainers:
        trainer.train()
    assert_same_training(*trainers)
    assert logged(trainers[0], "loss")[0] > 30


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    """`load_best_model_at_end` finds `eval_loss` and gives the weights of the best checkpoint."""
    greatest = {"metric_for_best_model": "loss", "greater_is_better": True}  # so that it is not the last
    greatest |= {"load_best_model_at_end": True, "save_strategy": "steps"}
    trainers = [make_trainer(which, tmp_path, **greatest) for which in ("ours", "stock")]
    for trainer in trainers:
        trainer.train()
        assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, abs=TOLERANCE)
    assert trainers[0].state.best_metric == pytest.approx(trainers[1].state.best_metric, abs=TOLERANCE)


def test_resumed_equals_uninterrupted(tmp_path):
    """`resume_from_checkpoint` goes on bit for bit."""
    whole = make_trainer("ours", tmp_path / "whole", save_strategy="steps")
    whole.train()
    resumed = make_trainer("ours", tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "ours" / "checkpoint-2"))
    assert logged(resumed, "loss") == logged(whole, "loss")
    weights = whole.model.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.state_dict().items())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_an_adapted_model_equals_the_adapted_stock(tmp_path, smoothing):
    """A LoRA adapter on either model trains to the same losses; the labels are found through the wrapper."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainers = []
    for which in ("ours", "stock"):
        stock = make_stock("sdpa")
        stock.loss_type = "ForCausalLM"
        model = stock if which == "stock" else twin_of(stock)
        torch.manual_seed(1)  # for the adapter
        model = peft.get_peft_model(model, copy.deepcopy(config))
        trainers.append(make_trainer(which, tmp_path, model=model, label_smoothing_factor=smoothing))
    for trainer in trainers:
        trainer.train()
    assert_same_training(*trainers)
