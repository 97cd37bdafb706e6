"""Learning from teachers: the loss is the one written down, made in chunks, and changes nothing else of a training."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2_hf.data.collators import FlatteningCollator, PaddingCollator
from gpt2_hf.errors import UserError
from gpt2_hf.model import chunked_loss
from gpt2_hf.model.chunked_loss import IGNORE_INDEX, chunked_cross_entropy
from gpt2_hf.trainer import distillation
from gpt2_hf.trainer.distillation import Distillation, TeacherOutput, chunked_distillation, teacher_head

from ..conftest import needs_bf16
from ..tiny_models import N_POSITIONS, VOCAB_SIZE, make_model, make_stock, random_ids
from . import helpers
from .helpers import DOCUMENTS, logged, true_loss

pytestmark = pytest.mark.usefixtures("several_softmax_blocks")
USED = torch.arange(0, VOCAB_SIZE, 2)  # every other token


def reference(hidden, weight, labels, teachers, alpha, temperature):
    """The definition, from all logits of student and teachers at once; the sum, and the plain cross-entropy."""
    scored = labels != IGNORE_INDEX
    logits = (hidden @ weight.t())[scored]
    teacher = sum(((h @ w.t())[scored] / temperature).softmax(-1) for h, w in teachers) / len(teachers)
    cross_entropy = F.cross_entropy(logits, labels[scored], reduction="sum")
    divergence = F.kl_div((logits / temperature).log_softmax(-1), teacher, reduction="sum")
    return (1 - alpha) * cross_entropy + alpha * temperature**2 * divergence, cross_entropy


def make_inputs(rows=170, vocab=61, padding=0, teachers=1, dtype=torch.float32):
    """Student and teachers of different widths; one of five positions is not scored."""
    generator = torch.Generator().manual_seed(rows)
    hidden, weight = (torch.randn(n, 16, generator=generator) for n in (rows, vocab + padding))
    labels = torch.randint(0, vocab, (rows,), generator=generator)
    labels[::5] = IGNORE_INDEX
    others = [
        (torch.randn(rows, width, generator=generator), torch.randn(vocab, width, generator=generator).mul(0.5))
        for width in (8, 24, 12)[:teachers]
    ]
    return hidden.to(dtype).requires_grad_(), weight.mul(0.5).to(dtype).requires_grad_(), labels, others


def outputs(teachers):
    return [TeacherOutput(hidden, weight, len(weight)) for hidden, weight in teachers]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.2, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.45, 1.0])
@pytest.mark.parametrize(("teachers", "padding"), [(1, 0), (2, 5), (3, 0)])
def test_loss_and_gradients_are_the_definition(monkeypatch, alpha, temperature, teachers, padding):
    """Per token to 1e-6, for one and several teachers, over several chunks and parts of them."""
    monkeypatch.setattr(distillation, "default_rows_per_chunk", lambda *kind: 150)
    hidden, weight, labels, others = make_inputs(rows=350, padding=padding, teachers=teachers)
    expected, plain = reference(hidden, weight[: len(weight) - padding], labels, others, alpha, temperature)
    loss, cross_entropy = chunked_distillation(
        *(hidden, weight, labels, outputs(others)),
        **{"alpha": alpha, "temperature": temperature, "num_padding_rows": padding},
    )
    count = len(labels)
    assert loss.item() / count == pytest.approx(expected.item() / count, abs=1e-6)
    assert cross_entropy.item() / count == pytest.approx(plain.item() / count, abs=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(loss / count, [hidden, weight]),
        torch.autograd.grad(expected / count, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_no_weight_is_the_plain_loss():
    """α = 0: the chunked cross-entropy and its gradients."""
    hidden, weight, labels, others = make_inputs(teachers=2)
    loss, cross_entropy = chunked_distillation(hidden, weight, labels, outputs(others), alpha=0.0, temperature=1.2)
    plain = chunked_cross_entropy(hidden, weight, labels)
    assert loss.item() == cross_entropy.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(loss, [hidden, weight]), torch.autograd.grad(plain, [hidden, weight]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_a_student_that_is_its_teacher_has_no_divergence():
    """α = 1: loss and gradients are 0."""
    hidden, weight, labels, _ = make_inputs()
    itself = outputs([(hidden.detach(), weight.detach())])
    loss, _ = chunked_distillation(hidden, weight, labels, itself, alpha=1.0, temperature=2.0)
    assert abs(loss.item()) / len(labels) < 1e-6
    assert max(grad.abs().max() for grad in torch.autograd.grad(loss, [hidden, weight])) < 1e-5


def test_nothing_to_score_costs_nothing():
    """A batch of filler alone: loss and gradients are 0."""
    hidden, weight, labels, others = make_inputs(rows=3)
    labels[:] = IGNORE_INDEX
    loss, _ = chunked_distillation(hidden, weight, labels, outputs(others), alpha=0.5, temperature=1.2)
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss, [hidden, weight]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_number_formats(monkeypatch, dtype):
    """16 bits are off by their rounding, with heads that are filled up as on CUDA; float64 is exact to 1e-12."""
    monkeypatch.setitem(chunked_loss._HEAD_ROWS_MULTIPLE_OF, "cpu", 64)
    inputs = make_inputs(teachers=2, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs[:2]]
    others = [(h.to(dtype).double(), w.to(dtype).double()) for h, w in inputs[3]]
    expected, _ = reference(*exact, inputs[2], others, 0.45, 1.0)
    given = outputs([(h.to(dtype), w.to(dtype)) for h, w in others])
    loss, _ = chunked_distillation(*inputs[:3], given, alpha=0.45, temperature=1.0)
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.1}
    torch.testing.assert_close(loss.double(), expected, **tolerance)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs[:2]), torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(mine.double(), theirs, **tolerance)


# ---- models ----


def make_teacher(seed, tied=False, **options):
    """A model with other weights than the student's, and dropout that must not act; perhaps with equal unused rows."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    teacher = make_model(**{"n_embd": 16, **dropout, **options})
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    if tied:
        teacher.tie_unused_tokens(USED)
    return teacher.train()


def full_logits(model, ids):
    """All logits `[B, T, V]`, with dropout off."""
    return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kinds", [(True,), (False,), (True, False), (False, True, True)])
def test_models_learn_what_the_definition_says(tied, kinds):
    """Unused tokens tied or not, in student and teachers: loss and gradients of all parameters, to 1e-6.

    A gradient of an unused token in a tied student is that of their common embedding, shared evenly.
    """
    student = make_model(n_layer=1)
    ids = USED[torch.randint(0, len(USED), (4, 20), generator=torch.Generator().manual_seed(1))]
    if tied:
        student.tie_unused_tokens(USED)
    teachers = [make_teacher(seed, kind) for seed, kind in enumerate(kinds)]
    targets = F.pad(ids[:, 1:], (0, 1), value=IGNORE_INDEX)
    flat = [model.clone().flatten(0, 1) for model in (full_logits(teacher, ids) for teacher in teachers)]
    logits = full_logits(student, ids).flatten(0, 1)
    identity = torch.eye(VOCAB_SIZE)
    expected, plain = reference(logits, identity, targets.flatten(), [(x.detach(), identity) for x in flat], 0.45, 1.5)
    expected_grads = dict(
        zip(dict(student.named_parameters()), torch.autograd.grad(expected / 76, student.parameters()), strict=True)
    )
    if tied:
        of_unused = expected_grads["transformer.wte.weight"][1::2]
        of_unused[:] = of_unused.mean(dim=0)

    taught = Distillation(teachers, 0.45, 1.5)
    batch = {"input_ids": ids, "shift_labels": targets}
    loss = student.train()(**batch, summed_loss=taught.read(batch), num_items_in_batch=76).loss
    assert loss.item() == pytest.approx(expected.item() / 76, abs=1e-6)
    loss.backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], atol=1e-6, rtol=0)
    assert taught.drain() == pytest.approx(plain.item() / 76, abs=1e-6)
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


def test_a_tied_teacher_of_a_tied_student_has_a_small_head():
    """One row stands for its equal ones; where they are not equal, or the student's are not tied, each is there."""
    student = make_model()
    student.tie_unused_tokens(USED)
    tied, plain = make_teacher(0, tied=True), make_teacher(0)
    assert teacher_head(tied, student.unused_tokens, torch.float32).num_rows == len(USED) + 1
    assert teacher_head(plain, student.unused_tokens, torch.float32).num_rows == VOCAB_SIZE
    assert teacher_head(tied, None, torch.float32).num_rows == VOCAB_SIZE


@pytest.mark.parametrize("tied", [False, True])
def test_no_tensor_holds_all_logits(monkeypatch, tied):
    """Of student and teachers there are never more rows of logits than a chunk has, 128 for a teacher."""
    monkeypatch.setitem(chunked_loss._ROWS_PER_CHUNK, "cpu", 32)
    monkeypatch.setitem(distillation._TEACHER_ROWS, "cpu", 16)
    student, teachers = make_model(n_layer=1), [make_teacher(0, tied), make_teacher(1)]
    if tied:
        student.tie_unused_tokens(USED)
    widths = {VOCAB_SIZE, len(USED) + 1}
    seen = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[-1:].numel() in widths and tensor.ndim > 1:
                    seen.add(tensor.shape[:-1].numel())
            return out

    ids = USED[torch.randint(0, len(USED), (8, 25), generator=torch.Generator().manual_seed(1))]
    taught, batch = Distillation(teachers, 0.45, 1.2), {"input_ids": ids, "labels": ids}
    with Shapes():
        student.train()(**batch, summed_loss=taught.read(batch)).loss.backward()
    assert max(seen) == 32 < ids.numel()


# ---- the Trainer ----


def make_trainer(folder, **given):
    """Four samples a step of `DOCUMENTS`, in rows or without padding, with two teachers of other sizes."""
    defaults = {"train_dataset": DOCUMENTS, "eval_dataset": DOCUMENTS[:5], "data_collator": PaddingCollator(0)}
    defaults |= {"save_strategy": "no", "eval_strategy": "no"}
    if "teachers" not in given:
        defaults["teachers"] = [make_teacher(0), make_teacher(1, n_layer=1)]
    return helpers.make_trainer(folder, **{**defaults, **given})


def trajectory(trainer):
    """Logged losses, plain cross-entropies and final weights."""
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return logged(trainer, "loss"), logged(trainer, "cross_entropy"), weights


def test_the_layout_of_a_batch_changes_nothing(tmp_path):
    """Rows with padding, a row without, and batches of one that are accumulated: the same run to rounding."""
    ways = {
        "padded": {"data_collator": PaddingCollator(0)},
        "longer": {"data_collator": PaddingCollator(0, pad_to_length=N_POSITIONS)},
        "padding_free": {"data_collator": FlatteningCollator()},
        "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    }
    sgd = {"optim": "sgd", "learning_rate": 0.1}  # AdamW would take a rounding of 0 for a direction
    runs = {name: trajectory(make_trainer(tmp_path / name, **options, **sgd)) for name, options in ways.items()}
    for losses, entropies, weights in runs.values():
        assert losses == pytest.approx(runs["padded"][0], abs=1e-5)
        assert entropies == pytest.approx(runs["padded"][1], abs=1e-5)
        torch.testing.assert_close(weights, runs["padded"][2], atol=1e-5, rtol=0)


def test_logs_tell_both_losses_and_evaluations_are_plain(tmp_path):
    """The loss is that of both terms, `cross_entropy` and `perplexity` those of the labels. Teachers do not change."""
    teachers = [make_teacher(0)]
    before = [parameter.clone() for parameter in teachers[0].parameters()]
    trainer = make_trainer(tmp_path, teachers=teachers, max_steps=2, eval_strategy="steps")
    losses, entropies, _ = trajectory(trainer)
    assert losses != pytest.approx(entropies, rel=0.01)
    assert logged(trainer, "perplexity") == pytest.approx([math.exp(value) for value in entropies])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(true_loss(trainer.model, DOCUMENTS[:5]), abs=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, teachers[0].parameters(), strict=True))
    alone = make_trainer(tmp_path / "alone", teachers=[], max_steps=2)
    alone.train()
    assert logged(alone, "loss")[0] == pytest.approx(entropies[0], abs=1e-5)
    assert "cross_entropy" not in alone.state.log_history[0]


def test_no_weight_trains_as_without_teachers(tmp_path):
    """α = 0, with dropout in the student: the teachers draw no random numbers."""
    dropout = {"model": make_model(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)}
    taught = trajectory(make_trainer(tmp_path / "taught", distill_alpha=0.0, optim="sgd", **dropout))
    dropout = {"model": make_model(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)}
    alone = trajectory(make_trainer(tmp_path / "alone", teachers=[], optim="sgd", **dropout))
    assert taught[0] == pytest.approx(alone[0], abs=1e-5)
    torch.testing.assert_close(taught[2], alone[2], atol=1e-5, rtol=0)


def test_a_resumed_run_goes_on_bit_for_bit(tmp_path):
    """Saved between two logs, with dropout: the same weights and the same history, plain losses included."""
    options = {"max_steps": 6, "logging_steps": 3, "save_strategy": "steps", "save_steps": 2}
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    whole = make_trainer(tmp_path / "whole", model=make_model(**dropout), **options)
    expected = trajectory(whole)
    resumed = make_trainer(tmp_path / "resumed", model=make_model(**dropout), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert logged(resumed, "loss") == expected[0] and logged(resumed, "cross_entropy") == expected[1]
    assert torch.equal(torch.cat([p.detach().flatten() for p in resumed.model.parameters()]), expected[2])


def test_a_resumed_run_needs_its_teachers(tmp_path):
    """Other weights, or another order, would change the loss in silence."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, teachers=[make_teacher(0), make_teacher(1)], **options).train()
    for teachers in ([make_teacher(1), make_teacher(0)], [make_teacher(0)]):
        resumed = make_trainer(tmp_path, teachers=teachers, **options | {"max_steps": 4})
        with pytest.raises(UserError, match="the teachers are not those that the checkpoint learned from"):
            resumed.train(resume_from_checkpoint=True)


@needs_bf16
def test_bf16_is_near_fp32(tmp_path):
    """Teachers compute in the run's precision."""
    exact, rounded = (trajectory(make_trainer(tmp_path / name, precision=name)) for name in ("fp32", "bf16"))
    assert rounded[0] == pytest.approx(exact[0], rel=0.02) and rounded[0] != exact[0]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_compiled_run_learns_the_same(tmp_path, precision):
    """The loss is made between two graphs, whatever the lengths of the batches."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # they count other tests' graphs too
    options = {"max_steps": 6, "precision": precision, "data_collator": FlatteningCollator()}
    compiled = trajectory(make_trainer(tmp_path / "compiled", torch_compile_backend="eager", **options))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 6
    plain = trajectory(make_trainer(tmp_path / "plain", **options))
    assert compiled[0] == pytest.approx(plain[0], rel=1e-5 if precision == "fp32" else 1e-2)
    torch._dynamo.reset()


def test_stock_batches_and_an_adapter_work(tmp_path):
    """Labels that the model shifts, and a student of which only an adapter is trained."""
    peft = pytest.importorskip("peft")
    adapter = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    data = {"train_dataset": helpers.BLOCKS, "data_collator": helpers.COLLATORS["stock"]}
    before = {name: parameter.detach().clone() for name, parameter in adapter.named_parameters()}
    losses, entropies, _ = trajectory(make_trainer(tmp_path, model=adapter, max_steps=2, **data))
    assert all(map(math.isfinite, losses + entropies)) and losses != pytest.approx(entropies, rel=0.01)
    changed = {name for name, parameter in adapter.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name} and changed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teachers": [make_stock()]}, "a teacher is a GPT2LMHeadModel"),
        ({"model": make_stock()}, "the model is a GPT2LMHeadModel"),
        ({"teachers": [make_model(vocab_size=98)]}, "a teacher has 98 tokens and the model 97"),
        ({"label_smoothing_factor": 0.1}, "--label_smoothing_factor spreads probability evenly"),
        ({"compute_loss_func": lambda *a, **k: None, "data_collator": None}, "loss of your own"),
        ({"teachers": [], "distill_from": ["a"]}, r"teachers=\[...\]"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, given, message):
    """When the Trainer is made, in one line."""
    with pytest.raises(UserError, match=message):
        make_trainer(tmp_path, **given)


def test_a_model_is_not_its_own_teacher(tmp_path):
    """Evaluation mode would be that of the student as well."""
    model = make_model()
    with pytest.raises(UserError, match="cannot be its own teacher"):
        make_trainer(tmp_path, model=model, teachers=[model])


def test_too_long_a_sample_is_an_error(tmp_path):
    """Of a teacher with fewer positions than the student."""
    with pytest.raises(ValueError, match="positions"):
        make_trainer(tmp_path, teachers=[make_teacher(0, n_positions=16)]).train()


def test_the_dropout_of_a_teacher_is_off():
    """It is in evaluation mode, whatever mode it was handed over in: the same loss again."""
    taught, ids = Distillation([make_teacher(0).train()], 1.0, 1.0), random_ids(2, 10)
    student, batch = make_model(), {"input_ids": ids, "labels": ids}
    losses = {student.train()(**batch, summed_loss=taught.read(batch)).loss.item() for _ in range(2)}
    assert len(losses) == 1
