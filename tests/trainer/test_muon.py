"""Muon with AdamW: which parameters go where, the same numbers as torch's two optimizers, saved and resumed."""

import math

import pytest
import torch
from torch.optim import AdamW, Muon

from gpt2_hf.checkpoints.state_files import load_state, save_state
from gpt2_hf.errors import UserError
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime.precision import resolve_precision
from gpt2_hf.trainer.muon import MuonWithAdamW, hidden_matrices, orthogonalized, state_bytes

from ..conftest import read_json
from ..runs import assert_same_state, final_state, history
from ..tiny_models import make_model, random_ids

SETTINGS = {"learning_rate": 3e-3, "matrix_learning_rate": 1e-2, "momentum": 0.9, "weight_decay": 0.1}
MUON = ("--optim", "muon", "--muon_learning_rate", "0.01")


def split(model):
    """Matrices, and one group of all other parameters."""
    matrices = hidden_matrices(model)
    others = [p for name, p in model.named_parameters() if name not in matrices]
    return list(matrices.values()), [{"params": others, "weight_decay": 0.1}]


def make_optimizer(model):
    """Both in one."""
    return MuonWithAdamW(*split(model), **SETTINGS)


def train_steps(model, optimizers, seeds):
    """One step on a random batch for each seed."""
    for seed in seeds:
        ids = random_ids(2, 8, seed=seed)
        model(input_ids=ids, labels=ids).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_matrices_are_those_of_the_blocks():
    """Four in each block; neither embeddings nor the head, tied or not."""
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        names = hidden_matrices(model)
        assert len(names) == 4 * model.config.n_layer
        assert all(".h." in name and name.endswith("weight") for name in names)


def test_frozen_parameters_are_left_out():
    """As with every other optimizer."""
    model = make_model()
    frozen = next(iter(hidden_matrices(model).values()))
    frozen.requires_grad_(False)
    assert all(parameter is not frozen for parameter in hidden_matrices(model).values())


def set_gradients(model, seed, factor=1.0):
    """Random ones, the same for every model of the same shapes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = factor * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("elements_at_once", [1, 1 << 24])
def test_steps_are_those_of_torch(monkeypatch, elements_at_once):
    """AdamW's bit for bit, Muon's to the rounding of its products; also with a rate that a schedule moves."""
    monkeypatch.setattr("gpt2_hf.trainer.muon._ELEMENTS_AT_ONCE", elements_at_once)
    # torch rounds its products to bf16 everywhere; two roundings would make the test depend on the machine
    monkeypatch.setattr("gpt2_hf.trainer.muon._product_dtype", lambda device_type: torch.float32)
    begin, ours, theirs = make_model(), make_model(), make_model()
    matrices, groups = split(theirs)
    muon = Muon(matrices, lr=1e-2, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    separate = [muon, AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)]
    joint = [make_optimizer(ours)]
    for seed, factor in ((1, 1.0), (2, 0.5), (3, 0.25)):
        for model, optimizers in ((ours, joint), (theirs, separate)):
            set_gradients(model, seed)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group.setdefault("peak", group["lr"])
                    group["lr"] = factor * group["peak"]
                optimizer.step()
    names = hidden_matrices(begin)
    for (name, a), b, start in zip(ours.named_parameters(), theirs.parameters(), begin.parameters(), strict=True):
        if name in names:
            assert (a - b).norm() < 0.02 * (b - start).norm()
        else:
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_are_orthogonalised(dtype):
    """Singular values near 1 and the singular vectors kept, in the formats of every device, large and small."""
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 40) * torch.tensor([1e-6, 1.0, 1e4]).view(3, 1, 1)
    result = orthogonalized(matrices, dtype)
    assert result.dtype == dtype
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ result.float() @ vh.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (values - torch.diag_embed(diagonal)).abs().max() < (1e-3 if dtype == torch.float32 else 0.1)


def test_products_run_in_a_format_that_the_device_has():
    """In bf16 without instructions for it a step would take thirty times as long."""
    matrix, other = torch.nn.Parameter(torch.zeros(16, 24)), torch.nn.Parameter(torch.zeros(3))
    torch.manual_seed(0)
    matrix.grad = torch.randn(16, 24)
    MuonWithAdamW([matrix], [{"params": [other]}], learning_rate=1e-3, matrix_learning_rate=1.0).step()
    update = -matrix.detach() / (0.2 * 24**0.5)
    error = (update - orthogonalized(matrix.grad[None].double(), torch.float64)[0]).abs().max()
    assert error < 1e-4 if resolve_precision("auto", "cpu").name == "fp32" else 1e-4 < error < 0.1


def test_a_step_can_be_left_out_on_the_device():
    """With `found_inf` nothing changes, whatever the gradients; where it is 0 the step is the usual one."""
    plain, watched = make_model(), make_model()
    of_plain, of_watched = make_optimizer(plain), make_optimizer(watched)
    for seed in (1, 2):
        set_gradients(plain, seed)
        of_plain.step()
        for found_inf, factor in ((1.0, math.nan), (0.0, 1.0)):
            of_watched.found_inf = torch.tensor(found_inf)
            set_gradients(watched, seed, factor)
            of_watched.step()
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(a, b)
        for name, value in of_plain.state[a].items():
            assert torch.equal(value, of_watched.state[b][name])


@pytest.mark.parametrize("unscaled_before", [True, False])
def test_a_loss_scaler_leaves_scaling_and_skipping_to_it(unscaled_before):
    """torch's, for fp16: the same steps as without, and none for a gradient that is not finite."""
    plain, scaled = make_model(), make_model()
    of_plain, of_scaled = make_optimizer(plain), make_optimizer(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for seed, factor in ((1, 1.0), (2, math.inf), (3, 1.0)):
        set_gradients(scaled, seed, factor * float(scaler.scale(torch.ones(()))))
        if unscaled_before:
            scaler.unscale_(of_scaled)
        scaler.step(of_scaled)
        scaler.update()
        if math.isfinite(factor):
            set_gradients(plain, seed)
            of_plain.step()
    assert scaler.get_scale() == 32.0
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_only_matrices_are_taken():
    """Anything else is refused with its shape."""
    vector, other = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        MuonWithAdamW([vector], [{"params": [other]}], learning_rate=1e-3, matrix_learning_rate=1e-3)


def test_an_update_has_the_stated_size():
    """Singular values near 0.2 * sqrt(the larger side) * learning rate, the same for a matrix and its transpose."""
    torch.manual_seed(0)
    tall = torch.nn.Parameter(torch.zeros(64, 16))
    wide = torch.nn.Parameter(torch.zeros(16, 64))
    other = torch.nn.Parameter(torch.zeros(3))
    gradient = torch.randn(64, 16)
    tall.grad, wide.grad, other.grad = gradient, gradient.T.clone(), torch.ones(3)
    MuonWithAdamW([tall, wide], [{"params": [other]}], learning_rate=1e-3, matrix_learning_rate=0.1).step()
    values = torch.linalg.svdvals(tall.detach()) / (0.1 * 0.2 * 64**0.5)
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.allclose(tall, wide.T, atol=1e-4)


@pytest.mark.parametrize("uses_muon", [True, False])
def test_planned_state_is_what_is_kept(uses_muon):
    """One number for each weight of a matrix instead of two."""
    model = make_model()
    optimizer = make_optimizer(model) if uses_muon else AdamW(model.parameters())
    train_steps(model, [optimizer], [1])
    kept = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(value.nbytes for value in kept) == state_bytes(model, uses_muon)


def test_state_survives_a_file(tmp_path):
    """Saved and loaded, the next steps are the same bit for bit; the momentum is loaded, not begun anew."""
    whole, first = make_model(), make_model()
    train_steps(whole, [make_optimizer(whole)], range(1, 5))
    optimizer = make_optimizer(first)
    train_steps(first, [optimizer], (1, 2))
    save_state(optimizer.state_dict(), tmp_path / "optimizer.safetensors")
    resumed = make_model()
    resumed.load_state_dict(first.state_dict())
    optimizer = make_optimizer(resumed)
    optimizer.load_state_dict(load_state(tmp_path / "optimizer.safetensors"))
    train_steps(resumed, [optimizer], (3, 4))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_with_muon_resumes_bit_for_bit(train_tiny, tmp_path):
    """Through the main job: interrupted and resumed = uninterrupted."""
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    options = (*MUON, "--save_every", "10", "--lr_scheduler_type", "constant")
    assert train_tiny(straight, *options, "--max_steps", "20") == 0
    assert train_tiny(parted, *options, "--max_steps", "10") == 0
    assert train_tiny(parted, *options, "--max_steps", "20", "--resume_from", "latest") == 0
    assert_same_state(final_state(straight, 20), final_state(parted, 20))
    assert history(straight / "checkpoint-20") == history(parted / "checkpoint-20")
    assert read_json(straight / "resolved_config.json")["optim"] == "muon"
    logs = [entry for entry in history(straight / "checkpoint-20") if "loss" in entry]
    losses = [entry["loss"] for entry in logs]
    assert {entry["learning_rate"] for entry in logs} == {
        read_json(straight / "resolved_config.json")["learning_rate"]
    }
    assert losses[-1] < losses[0]


def test_a_new_momentum_takes_effect_on_resume(train_tiny, tmp_path):
    """As every other setting of a resumed run."""
    run = tmp_path / "run"
    assert train_tiny(run, *MUON, "--max_steps", "2", "--save_every", "2") == 0
    options = ("--max_steps", "4", "--save_every", "2", "--muon_momentum", "0.5", "--resume_from", "latest")
    assert train_tiny(run, *MUON, *options) == 0
    groups = load_state(run / "checkpoint-4" / "optimizer.safetensors")["param_groups"]
    assert [group.get("momentum") for group in groups] == [None, None, 0.5]


def test_matrices_may_have_a_decay_of_their_own(train_tiny, tmp_path):
    """Left out, it is that of the embeddings; given, the embeddings keep theirs, and a resumed run takes it over."""
    run = tmp_path / "run"
    options = (*MUON, "--weight_decay", "0.4", "--save_every", "2")
    assert train_tiny(run, *options, "--max_steps", "2") == 0
    assert decays_of(run / "checkpoint-2") == [0.4, 0.0, 0.4]
    options += ("--muon_weight_decay", "0.2", "--resume_from", "latest")
    assert train_tiny(run, *options, "--max_steps", "4") == 0
    assert decays_of(run / "checkpoint-4") == [0.4, 0.0, 0.2]


def decays_of(checkpoint):
    """Of the embeddings, of biases and norms, and of the matrices."""
    groups = load_state(checkpoint / "optimizer.safetensors")["param_groups"]
    return [group["weight_decay"] for group in groups]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--muon_learning_rate", "0.1"), "--muon_learning_rate has no effect with --optim adamw_torch_fused"),
        (("--muon_momentum", "0.9"), "--muon_momentum has no effect with --optim adamw_torch_fused"),
        (("--muon_weight_decay", "0.1"), "--muon_weight_decay has no effect with --optim adamw_torch_fused"),
        (("--optim", "muon", "--muon_weight_decay", "-1"), "--muon_weight_decay must be"),
        (("--optim", "muon", "--muon_momentum", "1"), "--muon_momentum must be below 1, got 1"),
        (("--optim", "muon", "--muon_learning_rate", "0"), "--muon_learning_rate must be above 0"),
        (("--optim", "muon", "--fsdp"), "--optim muon needs whole matrices"),
        (("--optim", "moun"), "moun"),
    ],
)
def test_bad_options_are_refused(options, message):
    """In one line."""
    with pytest.raises(UserError, match=message) as raised:
        parse((ModelArguments, DataArguments, GPT2HFTrainingArguments), ["--use_cpu", *options])
    assert "\n" not in str(raised.value)
