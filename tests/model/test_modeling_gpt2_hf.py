"""The model computes what transformers' GPT-2 computes, and behaves as a model of transformers does."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, GPT2Config
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM, GPT2HFModel
from gpt2_hf.model import modeling_gpt2_hf

from ..tiny_models import (
    N_POSITIONS,
    NO_DROPOUT,
    SIZES,
    VOCAB_SIZE,
    attention_backend,
    make_model,
    make_stock,
    padded_batch,
    random_ids,
    twin_of,
)

TOLERANCE = 1e-5
VARIANTS = {
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "swish": {"activation_function": "swish"},
    "no_scaling": {"scale_attn_weights": False},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "mistral": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "narrow_mlp": {"n_inner": 20},
    "untied": {"tie_word_embeddings": False},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "one_layer": {"n_layer": 1, "n_head": 1},
}


def worst(ours, stock, mask=None):
    """The largest difference, at the positions of the mask."""
    difference = (ours - stock).abs()
    return difference.max() if mask is None else difference[mask.bool()].max()


def gradients(model, **inputs):
    """Loss and gradient of every parameter."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


# --- equal to stock GPT-2 ---


@pytest.mark.parametrize(
    "inputs", ["batch", "single", "left", "long_left", "right", "positions", "jumping", "token_types", "embeddings"]
)
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_logits_equal_stock(backend, inputs):
    """Logits equal stock GPT-2's to 1e-5 with any padding, positions, or embeddings, on every backend."""
    stock = make_stock()
    batch = {
        "batch": {"input_ids": random_ids(3, 20)},
        "single": {"input_ids": random_ids(1, 1)},
        "left": padded_batch("left"),
        "long_left": {name: F.pad(given, (N_POSITIONS, 0)) for name, given in padded_batch("left").items()},
        "right": padded_batch("right"),
        "positions": {"input_ids": random_ids(2, 9), "position_ids": torch.arange(5, 14).expand(2, -1)},
        "jumping": {"input_ids": random_ids(1, 5), "position_ids": torch.tensor([[0, 1, 2, 10, 11]])},
        "token_types": {"input_ids": random_ids(2, 9), "token_type_ids": random_ids(2, 9, seed=5)},
        "embeddings": {"inputs_embeds": torch.randn(2, 9, SIZES["n_embd"])},
    }[inputs]
    model = twin_of(stock, backend)
    assert model.config._attn_implementation == backend
    with attention_backend(backend):
        logits = model(**batch).logits
    assert worst(logits, stock(**batch).logits, batch.get("attention_mask")) <= TOLERANCE


@pytest.mark.slow
@torch.no_grad()
def test_logits_of_compiled_flex_equal_stock():
    """flex_attention's compiled kernel gives stock's logits, with and without padding."""
    stock = make_stock()
    model = twin_of(stock, "flex_attention")
    for batch in ({"input_ids": random_ids(2, 20)}, padded_batch("left")):
        assert worst(model(**batch).logits, stock(**batch).logits, batch.get("attention_mask")) <= TOLERANCE


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("inputs", ["full", "left", "right"])
def test_loss_and_gradients_equal_stock(backend, inputs):
    """Loss and every gradient equal stock GPT-2's to 1e-5 in training mode."""
    stock = make_stock(backend).train()
    stock.loss_type = "ForCausalLM"
    batch = {"input_ids": random_ids(3, 20)} if inputs == "full" else padded_batch(inputs)
    labels = batch["input_ids"].clone()
    if inputs != "full":
        labels[batch["attention_mask"] == 0] = -100
    batch["labels"] = labels
    stock_loss, stock_gradients = gradients(stock, **batch)
    loss, ours = gradients(twin_of(stock, backend).train(), **batch)
    assert (loss - stock_loss).abs() <= TOLERANCE
    assert ours.keys() == stock_gradients.keys()
    for name, gradient in ours.items():
        assert worst(gradient, stock_gradients[name]) <= TOLERANCE, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_config_variants_equal_stock(variant):
    """Every variant of the stock config computes stock's logits and gradients, on both CPU backends."""
    stock = make_stock(**VARIANTS[variant]).train()
    batch = {"input_ids": random_ids(2, 12), "labels": random_ids(2, 12)}
    stock_loss, stock_gradients = gradients(stock, **batch)
    for backend in ("eager", "sdpa"):
        loss, ours = gradients(twin_of(stock, backend).train(), **batch)
        assert (loss - stock_loss).abs() <= TOLERANCE
        assert max(worst(ours[name], stock_gradients[name]) for name in ours) <= TOLERANCE


@pytest.mark.parametrize("variant", ["plain", "upcast"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("how", ["weights", "autocast"])
@torch.no_grad()
def test_bf16_errs_no_more_than_stock(backend, how, variant):
    """In bf16, logits and loss are as close to fp32 as those of stock in bf16 (root mean square, 10 % allowed)."""
    exact = make_stock("sdpa", n_layer=4, **VARIANTS.get(variant, {}))
    ids = random_ids(8, 24)
    stock, ours = copy.deepcopy(exact), twin_of(exact, backend)
    stock.set_attn_implementation(backend)
    if how == "weights":
        stock, ours = stock.to(torch.bfloat16), ours.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        outputs = [model(ids, labels=ids) for model in (stock, ours)]
    reference = exact(ids, labels=ids)
    stock_error, error = ((out.logits.float() - reference.logits).square().mean().sqrt() for out in outputs)
    assert error <= 1.1 * stock_error
    assert (outputs[1].loss - reference.loss).abs() <= (outputs[0].loss - reference.loss).abs() + 5e-3


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_cache_changes_nothing(backend):
    """Token by token or in pieces with a cache, the logits are those of the whole sequence at once."""
    model = make_model(backend)
    ids = random_ids(2, 12)
    with attention_backend(backend):
        whole = model(ids, use_cache=False)
        assert whole.past_key_values is None
        for pieces in ([1] * 12, [5, 4, 3]):
            past, logits = None, []
            for piece in ids.split(pieces, dim=1):
                out = model(piece, past_key_values=past, use_cache=True)
                past = out.past_key_values
                logits.append(out.logits)
            assert worst(torch.cat(logits, dim=1), whole.logits) <= TOLERANCE


@torch.no_grad()
def test_cache_with_left_padding_equals_stock():
    """A padded prompt continued from the cache gives stock's logits."""
    stock = make_stock()
    batch = padded_batch("left")
    last = random_ids(3, 1, seed=9)
    results = []
    for model in (stock, twin_of(stock)):
        past = model(**batch, use_cache=True).past_key_values
        mask = F.pad(batch["attention_mask"], (0, 1), value=1)
        positions = batch["position_ids"][:, -1:] + 1
        out = model(last, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True)
        results.append(out.logits)
    assert worst(*results) <= TOLERANCE


@torch.no_grad()
def test_a_text_scored_in_pieces_keeps_its_context():
    """In evaluation a loss comes with the cache, so that the next piece goes on from it as in stock."""
    stock = make_stock()
    stock.loss_type = "ForCausalLM"
    ids = random_ids(2, 12)
    losses = []
    for model in (stock, twin_of(stock)):
        past = None
        for end, piece in zip((5, 9, 12), ids.split([5, 4, 3], dim=1), strict=True):
            out = model(piece, labels=piece, past_key_values=past)
            past = out.past_key_values
            assert past.get_seq_length() == end
            losses.append(out.loss)
    assert worst(torch.stack(losses[3:]), torch.stack(losses[:3])) <= TOLERANCE
    assert model.train()(ids, labels=ids).past_key_values is None


def test_parameters_that_a_token_is_multiplied_with():
    """Embeddings are looked up; the head counts, whether its weight is the embedding's or its own."""
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        everything = sum(parameter.numel() for parameter in model.parameters())
        looked_up = model.transformer.wpe.weight.numel() + (0 if tied else model.transformer.wte.weight.numel())
        assert model.num_matmul_parameters == everything - looked_up


# --- the loss ---


def test_training_returns_no_logits_unless_asked():
    """Training with labels leaves the logits out; evaluation, no labels, or return_logits=True gives them."""
    model = make_model().train()
    ids = random_ids(2, 8)
    assert model(ids, labels=ids).logits is None
    assert model(ids).logits.shape == (2, 8, VOCAB_SIZE)
    assert model(ids, labels=ids, return_logits=True).logits.shape == (2, 8, VOCAB_SIZE)
    assert model(ids, labels=ids, return_logits=True, logits_to_keep=2).logits.shape == (2, 2, VOCAB_SIZE)
    model.eval()
    assert model(ids, labels=ids).logits.shape == (2, 8, VOCAB_SIZE)
    assert model(ids, labels=ids, return_logits=False).logits is None


@pytest.mark.parametrize("head", ["plain", "padded vocabulary", "adapted"])
@pytest.mark.parametrize("gradients", [True, False])
def test_evaluation_multiplies_with_the_head_once(head, gradients, monkeypatch):
    """The loss that comes with logits is theirs, some positions at a time, and that of a call without."""
    monkeypatch.setattr(modeling_gpt2_hf, "default_rows_per_chunk", lambda *_: 5)
    model, ids = make_model().double(), random_ids(2, 8)
    if head == "padded vocabulary":
        model.resize_token_embeddings(pad_to_multiple_of=64)
    elif head == "adapted":
        model.lm_head = nn.Linear(SIZES["n_embd"], VOCAB_SIZE, dtype=torch.float64)
    options = {"labels": ids.clone().fill_diagonal_(-100), "label_smoothing": 0.1}
    with torch.set_grad_enabled(gradients):
        expected = model(ids, **options, return_logits=False).loss
        with FlopCounterMode(display=False) as of_logits:
            model(ids)
        with FlopCounterMode(display=False) as of_both:
            out = model(ids, **options)
        assert of_both.get_total_flops() == of_logits.get_total_flops() and out.loss.dtype == torch.float64
        torch.testing.assert_close(out.loss, expected, atol=1e-12, rtol=0)
        few = model(ids, **options, logits_to_keep=1)
        assert few.logits.shape[1] == 1
        torch.testing.assert_close(few.loss, expected, atol=1e-12, rtol=0)


def test_num_items_in_batch_divides_the_sum():
    """Micro-batches divided by the step's token count add up to the loss of the whole batch."""
    model = make_model()
    batch = padded_batch("right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    whole = model(batch["input_ids"], labels=labels).loss
    items = (labels[:, 1:] != -100).sum()
    for count in (items, items.float(), int(items)):
        parts = [
            model(batch["input_ids"][row], labels=labels[row], num_items_in_batch=count).loss for row in ([0, 1], [2])
        ]
        torch.testing.assert_close(sum(parts), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)], ids=str)
@pytest.mark.parametrize("head", ["whole", "of used tokens", "adapted"])
def test_a_step_without_scored_tokens_changes_nothing(num_items, head):
    """Gradients of 0, as of stock GPT-2, and a loss of 0; without gradients the mean of nothing is NaN."""
    model, ids = make_model().train(), random_ids(2, 8)
    if head == "of used tokens":
        model.tie_unused_tokens(ids.unique())
    elif head == "adapted":
        model.lm_head.register_parameter("bias", torch.nn.Parameter(torch.zeros(VOCAB_SIZE)))
    nothing = {"labels": torch.full_like(ids, -100), "num_items_in_batch": num_items}
    loss = model(ids, **nothing).loss
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        assert model(ids, **nothing).loss.isnan()


def test_a_config_of_stock_gpt2_is_refused():
    """With a line: transformers' classes take any config."""
    with pytest.raises(ValueError, match="takes a GPT2HFConfig, got GPT2Config"):
        GPT2HFForCausalLM(GPT2Config(n_layer=1, n_head=1, n_embd=8))


def test_shift_labels_are_not_shifted_again():
    """shift_labels are the target of their own position."""
    model = make_model()
    ids = random_ids(2, 8)
    shifted = F.pad(ids[:, 1:], (0, 1), value=-100)
    assert torch.equal(model(ids, shift_labels=shifted).loss, model(ids, labels=ids).loss)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_loss_is_the_cross_entropy_of_the_logits(label_smoothing):
    """The chunked loss agrees with F.cross_entropy on the model's own logits."""
    model = make_model()
    ids = random_ids(2, 16)
    out = model(ids, labels=ids, label_smoothing=label_smoothing)
    plain = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=label_smoothing)
    assert (out.loss - plain).abs() <= TOLERANCE


class Scaled(nn.Linear):
    """A head that is more than the product with its weight."""

    def forward(self, hidden_states):
        return 2 * super().forward(hidden_states)


class Quantised(torch.Tensor):
    """A weight that is more than its numbers, as torchao's are."""

    def __tensor_flatten__(self):
        return [], None

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            with torch._C.DisableTorchFunctionSubclass():
                return 2 * func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def quantised_head(width):
    """A plain layer with such a weight."""
    head = nn.Linear(width, VOCAB_SIZE, bias=False)
    head.weight = nn.Parameter(head.weight.detach().as_subclass(Quantised))
    return head


@pytest.mark.parametrize("head", ["bias", "subclass", "sequential", "quantised"])
def test_a_swapped_head_is_used_in_the_loss(head):
    """With another head in place of lm_head, the loss is that of the logits it gives."""
    model = make_model()
    width = SIZES["n_embd"]
    model.lm_head = {
        "bias": lambda: nn.Linear(width, VOCAB_SIZE),
        "subclass": lambda: Scaled(width, VOCAB_SIZE, bias=False),
        "sequential": lambda: nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, VOCAB_SIZE)),
        "quantised": lambda: quantised_head(width),
    }[head]()
    ids = random_ids(2, 8)
    out = model(ids, labels=ids, label_smoothing=0.1)
    plain = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)
    assert (out.loss - plain).abs() <= TOLERANCE


@pytest.mark.parametrize("variant", ["plain", "padded vocabulary", "head with bias"])
def test_the_loss_of_each_position(variant):
    """Reduction "none": that of F.cross_entropy on the model's logits, in the shape of the labels, 0 if not scored."""
    model = make_model()
    if variant == "padded vocabulary":
        model.resize_token_embeddings(pad_to_multiple_of=64)
        model.lm_head.weight.data[VOCAB_SIZE:] = 100.0
    if variant == "head with bias":
        model.lm_head = nn.Linear(SIZES["n_embd"], VOCAB_SIZE)
    ids = random_ids(2, 16)
    targets = F.pad(ids[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        out = model(ids, labels=ids, reduction="none", return_logits=True)
    plain = F.cross_entropy(out.logits[..., :VOCAB_SIZE].flatten(0, 1), targets.flatten(), reduction="none")
    torch.testing.assert_close(out.loss, plain.view(2, 16), atol=TOLERANCE, rtol=0)


def test_the_loss_of_each_position_is_for_scoring():
    """Where a gradient, smoothing or a count would be lost in silence, it is refused."""
    model, ids = make_model(), random_ids(1, 8)
    with pytest.raises(ValueError, match=r"without gradients; call the model under torch.no_grad\(\)"):
        model(ids, labels=ids, reduction="none")
    with torch.no_grad():
        for name, value in {"label_smoothing": 0.1, "num_items_in_batch": 7}.items():
            with pytest.raises(ValueError, match=name):
                model(ids, labels=ids, reduction="none", **{name: value})
        with pytest.raises(ValueError, match="'mean' or 'none', got 'sum'"):
            model(ids, labels=ids, reduction="sum")


def test_gradients_of_each_sample():
    """By torch.func in evaluation mode, as the docstring says: those of one sample after the other."""
    model, ids = make_model(), random_ids(3, 9)

    def loss(parameters, row):
        row = row.unsqueeze(0)
        return torch.func.functional_call(model, parameters, (row,), {"labels": row}).loss

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, ids)
    for row, gradient in zip(ids, together["transformer.wpe.weight"], strict=True):
        _, alone = gradients(model, input_ids=row[None], labels=row[None])
        assert worst(gradient, alone["transformer.wpe.weight"]) <= TOLERANCE


def test_a_loss_function_is_refused():
    """transformers' models call what is assigned here; this one would ignore it in silence."""
    with pytest.raises(ValueError, match="compute_loss_func"):
        make_model().loss_function = F.mse_loss


# --- activation checkpointing, errors ---


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    """Recomputing activations gives the same loss and gradients, with dropout on."""
    model = make_model(resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1).train()
    ids = random_ids(2, 16)
    torch.manual_seed(3)
    loss, plain = gradients(model, input_ids=ids, labels=ids)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    torch.manual_seed(3)
    checkpointed_loss, checkpointed = gradients(model, input_ids=ids, labels=ids, use_cache=True)
    assert torch.equal(loss, checkpointed_loss)
    for name in plain:
        assert worst(plain[name], checkpointed[name]) <= TOLERANCE, name
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@torch.no_grad()
def test_too_long_a_sequence_is_refused_before_any_index_error():
    """Beyond n_positions, at once or from the cache, a ValueError names the field and both numbers."""
    model = make_model()
    with pytest.raises(ValueError, match=r"33 tokens but the model has 32 positions \(n_positions\)"):
        model(random_ids(1, 33))
    past = model(random_ids(1, 30), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="n_positions"):
        model(random_ids(1, 3), past_key_values=past)
    with pytest.raises(ValueError, match="n_positions"):
        model(random_ids(1, 3), position_ids=torch.tensor([[30, 31, 32]]))
    model(random_ids(1, 2), past_key_values=model(random_ids(1, 30), use_cache=True).past_key_values)


def test_ids_or_embeddings_but_not_both():
    """Neither or both inputs raise a ValueError."""
    model = make_model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(random_ids(1, 3), inputs_embeds=torch.zeros(1, 3, SIZES["n_embd"]))


@pytest.mark.parametrize("inputs", ["batch", "left"])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("by", ["call", "config"])
def test_attention_in_both_directions_is_refused(by, backend, inputs):
    """It would be obeyed or not by backend and padding; that the model is causal may be said."""
    model = make_model(backend)
    batch = {"input_ids": random_ids(3, 12)} if inputs == "batch" else padded_batch("left")
    assert torch.equal(model(**batch, is_causal=True).logits, model(**batch).logits)
    options = {"is_causal": False} if by == "call" else {}
    model.config.is_causal = by == "call"
    with pytest.raises(ValueError, match="is_causal"):
        model(**batch, **options)


def test_cross_attention_is_refused():
    """By a call, and by a config that asked for it after it was made, as an encoder-decoder model does."""
    model = make_model()
    with pytest.raises(ValueError, match="no cross-attention"):
        model(random_ids(1, 3), encoder_hidden_states=torch.zeros(1, 3, SIZES["n_embd"]))
    model.config.add_cross_attention = True
    for model_class in (GPT2HFModel, GPT2HFForCausalLM):
        with pytest.raises(ValueError, match="no cross-attention"):
            model_class(model.config)


# --- initialisation ---

INIT_SIZES = {**SIZES, "n_embd": 128, "n_head": 4, "n_layer": 6, "vocab_size": 500, "n_positions": 200}


def build(how, **overrides):
    """A new model, by each of the ways that transformers offers."""
    config = GPT2HFConfig(**{**INIT_SIZES, **overrides})
    if how == "constructor":
        return GPT2HFForCausalLM(config)
    if how == "from_config":
        return AutoModelForCausalLM.from_config(config)
    if how == "base":
        return AutoModel.from_config(config)
    with torch.device("meta"):
        model = GPT2HFForCausalLM(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    return model


@pytest.mark.parametrize("how", ["constructor", "from_config", "base", "meta"])
def test_initialisation_follows_the_paper(how):
    """Weights N(0, 0.02), residual projections 0.02 / sqrt(2 * n_layer), zero biases, however the model is made."""
    torch.manual_seed(0)
    model = build(how)
    residual = 0.02 / math.sqrt(2 * INIT_SIZES["n_layer"])
    seen = set()
    for name, parameter in model.named_parameters():
        kind = ".".join(name.split(".")[-3:])
        seen.add(kind)
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif ".ln_" in f".{name}":
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            expected = residual if "c_proj" in name else 0.02
            # The standard error of the estimate is std / sqrt(2 n); five of them.
            spread = 5 * expected / math.sqrt(2 * parameter.numel())
            assert abs(parameter.std().item() - expected) <= spread, name
            assert abs(parameter.mean().item()) <= 5 * expected / math.sqrt(parameter.numel()), name
            assert parameter.abs().max() > 2.5 * expected, name  # normal, not uniform
    assert any("c_proj" in name for name in seen)
    if how != "base":
        assert model.lm_head.weight is model.transformer.wte.weight


def test_initializer_range_scales_everything():
    """initializer_range is the standard deviation, for the residual projections before their scaling."""
    model = build("constructor", initializer_range=0.1, tie_word_embeddings=False)
    assert model.lm_head.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.05)


def test_same_seed_same_model():
    """The constructor and from_config draw the same numbers from the same seed."""
    models = []
    for how in ("constructor", "from_config"):
        torch.manual_seed(7)
        models.append(build(how).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


# --- the conventions of transformers ---


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_is_bitwise_the_same(tmp_path, tied):
    """save_pretrained, then from_pretrained, AutoModelForCausalLM and AutoModel: the same bits."""
    model = make_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    for loaded in (GPT2HFForCausalLM.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is GPT2HFForCausalLM
        assert (loaded.lm_head.weight is loaded.transformer.wte.weight) == tied
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is GPT2HFModel
    assert all(torch.equal(base.state_dict()[name], t) for name, t in model.transformer.state_dict().items())


def test_a_base_checkpoint_loads_under_a_head_and_back(tmp_path):
    """Weights saved from the base model load into the model with a head, whose head is tied to them."""
    base = make_model().transformer
    base.save_pretrained(tmp_path)
    model, info = GPT2HFForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = random_ids(1, 9)
    torch.testing.assert_close(model(ids).logits, F.linear(base(ids).last_hidden_state, base.wte.weight))


@torch.no_grad()
def test_hidden_states_and_attentions_equal_stock():
    """output_hidden_states and output_attentions give what stock gives, entry by entry."""
    stock = make_stock()
    model = twin_of(stock, "eager")
    batch = {"input_ids": random_ids(2, 9), "output_hidden_states": True, "output_attentions": True}
    ours, theirs = model(**batch), stock(**batch)
    for field, count in (("hidden_states", SIZES["n_layer"] + 1), ("attentions", SIZES["n_layer"])):
        assert len(ours[field]) == len(theirs[field]) == count
        for mine, other in zip(ours[field], theirs[field], strict=True):
            assert worst(mine, other) <= TOLERANCE
    as_tuple = model(batch["input_ids"], return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], model(batch["input_ids"]).logits)


@torch.no_grad()
def test_logits_to_keep():
    """An int, an index tensor, indices per row and a mask give those rows of the full logits."""
    model = make_model()
    ids = random_ids(2, 9)
    full = model(ids).logits
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    expected = [
        (0, full),
        (1, full[:, -1:]),
        (4, full[:, -4:]),
        (torch.tensor([0, 3, 8]), full[:, [0, 3, 8]]),
        (torch.tensor([[0, 2], [5, 8]]), torch.stack([full[0, [0, 2]], full[1, [5, 8]]])),
        (mask, full[mask]),
    ]
    for keep, rows in expected:
        torch.testing.assert_close(model(ids, logits_to_keep=keep).logits, rows, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_set_attn_implementation():
    """The backend can be changed on a living model, by name, and an unknown one is refused."""
    model = make_model("eager")
    ids = random_ids(1, 9)
    eager = model(ids, output_attentions=True)
    assert len(eager.attentions) == SIZES["n_layer"]
    model.set_attn_implementation("sdpa")
    assert model.transformer.h[0].attn.config._attn_implementation == "sdpa"
    assert worst(model(ids).logits, eager.logits) <= TOLERANCE
    with pytest.raises(ValueError, match="no_such_backend"):
        model.set_attn_implementation("no_such_backend")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", "auto"])
def test_dtype(tmp_path, dtype):
    """from_pretrained(dtype=...) gives every parameter that dtype; "auto" the one that was saved."""
    make_model().to(torch.float16).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    wanted = {"auto": torch.float16, "bfloat16": torch.bfloat16}.get(dtype, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert model(random_ids(1, 5)).logits.dtype == wanted
    assert AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=dtype).dtype == wanted  # the name until v4


@torch.no_grad()
@pytest.mark.parametrize("where", ["cpu", "auto", "offloaded"])
def test_device_map(tmp_path, where):
    """With a device map, even with blocks and head offloaded to disk, logits and loss are unchanged."""
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    device_map: object = where
    if where == "offloaded":
        device_map = {
            "transformer.wte": "disk",
            "lm_head": "disk",
            "transformer.wpe": "cpu",
            "transformer.ln_f": "cpu",
        }
        device_map |= {"transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.h.2": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    ids = random_ids(2, 9)
    ours, plain = loaded(ids, labels=ids), model(ids, labels=ids)
    assert worst(ours.logits, plain.logits) <= TOLERANCE
    assert (ours.loss - plain.loss).abs() <= TOLERANCE


def test_dropout_is_switched_off_as_in_stock():
    """By setting the rate of each module to 0, as trl does."""
    model = make_model(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = random_ids(1, 9)
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_resize_token_embeddings(tied):
    """Growing and shrinking keeps the old rows, the tie, and the logits of the old ids."""
    model = make_model(tie_word_embeddings=tied)
    ids = random_ids(1, 9)
    before, of_first_ids = model(ids).logits, model(ids % 50).logits
    model.resize_token_embeddings(VOCAB_SIZE + 5)
    after = model(ids).logits
    assert after.shape[-1] == model.config.vocab_size == VOCAB_SIZE + 5
    assert worst(after[..., :VOCAB_SIZE], before) <= TOLERANCE
    assert model.config.n_vocab_padding == 0
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    model.resize_token_embeddings(50)
    assert worst(model(ids % 50).logits, of_first_ids[..., :50]) <= TOLERANCE
    assert model.lm_head.weight.shape == model.get_input_embeddings().weight.shape == (50, SIZES["n_embd"])


@settings(max_examples=15)
@given(multiple=st.sampled_from([8, 16, 64]), tied=st.booleans(), label_smoothing=st.sampled_from([0.0, 0.1]))
def test_padding_of_the_vocabulary_never_receives_probability(multiple, tied, label_smoothing):
    """A vocabulary padded to a multiple computes the same loss, gradients and probabilities; its padding gets none."""
    plain = make_model(tie_word_embeddings=tied)
    padded = make_model(tie_word_embeddings=tied)
    padded.resize_token_embeddings(pad_to_multiple_of=multiple)
    extra = -VOCAB_SIZE % multiple
    assert padded.config.vocab_size == VOCAB_SIZE + extra and padded.config.n_vocab_padding == extra
    with torch.no_grad():
        padded.get_input_embeddings().weight[VOCAB_SIZE:] = 100.0  # would win every softmax
        padded.lm_head.weight[VOCAB_SIZE:] = 100.0
    ids = random_ids(2, 9)
    batch = {"input_ids": ids, "labels": ids, "label_smoothing": label_smoothing, "return_logits": True}
    ours, theirs = padded(**batch), plain(**batch)
    probabilities = ours.logits.softmax(dim=-1)
    assert (probabilities[..., VOCAB_SIZE:] == 0).all()
    torch.testing.assert_close(probabilities[..., :VOCAB_SIZE], theirs.logits.softmax(dim=-1), atol=1e-6, rtol=0)
    assert (ours.loss - theirs.loss).abs() <= TOLERANCE
    _, mine = gradients(padded, **batch)
    _, other = gradients(plain, **batch)
    for name, gradient in other.items():
        assert worst(mine[name][: gradient.shape[0]], gradient) <= TOLERANCE
        assert not mine[name][gradient.shape[0] :].any()
    sample = padded.generate(ids, do_sample=True, max_new_tokens=10, temperature=5.0, top_k=0)
    assert sample.max() < VOCAB_SIZE


def test_padding_of_the_vocabulary_is_saved_and_taken_back(tmp_path):
    """The padding survives saving; resizing to the tokenizer's length removes it, bit for bit."""
    model = make_model()
    model.resize_token_embeddings(VOCAB_SIZE, pad_to_multiple_of=64)
    model.save_pretrained(tmp_path)
    loaded = GPT2HFForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.vocab_size, loaded.config.n_vocab_padding) == (128, 31)
    ids = random_ids(1, 9)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.resize_token_embeddings() is loaded.get_input_embeddings()
    assert loaded.config.n_vocab_padding == 31
    loaded.resize_token_embeddings(VOCAB_SIZE)
    assert loaded.config.n_vocab_padding == 0
    assert torch.equal(loaded.transformer.wte.weight, make_model().transformer.wte.weight)


def test_a_padded_head_without_the_chunked_loss():
    """The plain loss of a swapped head leaves the padding out as well."""
    model = make_model()
    model.resize_token_embeddings(pad_to_multiple_of=64)
    model.lm_head = Scaled(SIZES["n_embd"], 128, bias=False)
    ids = random_ids(2, 8)
    out = model(ids, labels=ids, label_smoothing=0.1)
    logits = out.logits[:, :-1, :VOCAB_SIZE].flatten(0, 1)
    assert (out.loss - F.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)).abs() <= TOLERANCE


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiles_as_one_graph(backend):
    """torch.compile(fullgraph=True) works for logits, training step and packed rows, with the same numbers."""
    torch._dynamo.reset()
    model = make_model(n_layer=2)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    ids = random_ids(2, 12)
    with torch.no_grad():
        assert worst(compiled(ids).logits, model(ids).logits) <= TOLERANCE
    packed = {
        "input_ids": ids.view(1, -1),
        "shift_labels": ids.view(1, -1),
        "cu_seq_lens_q": torch.tensor([0, 5, 24], dtype=torch.int32),
        "max_length_q": 19,
    }
    for batch in ({"input_ids": ids, "labels": ids}, packed):
        model.train()
        plain_loss, plain = gradients(model, **batch)
        model.zero_grad()
        loss = compiled(**batch).loss
        loss.backward()
        assert (loss - plain_loss).abs() <= TOLERANCE
        for name, parameter in model.named_parameters():
            assert worst(parameter.grad, plain[name]) <= TOLERANCE, name


@torch.no_grad()
def test_exports_with_a_dynamic_length():
    """torch.export gives a program that takes other lengths and computes the same logits."""
    model = make_model()
    length = torch.export.Dim("length", min=2, max=SIZES["n_positions"])
    program = torch.export.export(
        model,
        (),
        {"input_ids": random_ids(1, 8), "use_cache": False},
        dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
    )
    ids = random_ids(1, 21)
    assert worst(program.module()(input_ids=ids, use_cache=False).logits, model(ids).logits) <= TOLERANCE


@pytest.mark.parametrize("targets", [["c_attn", "c_proj", "c_fc"], "all-linear"], ids=["by_name", "all_linear"])
def test_lora(tmp_path, targets):
    """A LoRA adapter finds the layers, changes nothing at first, learns, merges, and is saved and loaded."""
    peft = pytest.importorskip("peft")
    model = make_model()
    ids = random_ids(2, 12)
    before = model(ids).logits.detach()
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", fan_in_fan_out=True)
    adapted = peft.get_peft_model(model, config)
    wrapped = {name for name, module in adapted.named_modules() if isinstance(module, peft.tuners.lora.Linear)}
    assert len(wrapped) == 4 * SIZES["n_layer"] and not any("lm_head" in name for name in wrapped)
    assert worst(adapted(ids).logits, before) <= TOLERANCE
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(5):
        loss = adapted(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted.eval()
    after = adapted(ids).logits.detach()
    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_model(), tmp_path)
    assert worst(loaded(ids).logits, after) <= TOLERANCE
    merged = loaded.merge_and_unload()
    assert all(isinstance(block.attn.c_attn, Conv1D) for block in merged.transformer.h)
    assert worst(merged(ids).logits, after) <= 5e-5


def test_lora_on_the_head_is_trained():
    """An adapter on lm_head takes part in the loss and receives gradients."""
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(make_model(tie_word_embeddings=False), peft.LoraConfig(target_modules=["lm_head"]))
    ids = random_ids(2, 12)
    adapted.train()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.any() for n, p in adapted.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("activation", sorted({"gelu_new", "gelu_fast", "quick_gelu", "tanh", "silu"} & set(ACT2FN)))
def test_activations_are_stocks(activation):
    """The activation of the MLP is the function that its name means in transformers."""
    model = make_model(n_layer=1, activation_function=activation)
    x = torch.linspace(-6, 6, 101)
    assert worst(model.transformer.h[0].mlp.act(x), ACT2FN[activation](x)) <= 1e-6


def test_dropout_is_where_stock_has_it():
    """Each rate alone makes two training passes differ; all at zero, training equals evaluation."""
    ids = random_ids(2, 12)
    for name in NO_DROPOUT:
        model = make_model(**{name: 0.5}).train()
        assert worst(model(ids).logits, model(ids).logits) > 0.01, name
        assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    model = make_model()
    assert torch.equal(model.train()(ids).logits, model.eval()(ids).logits)


def test_generation_config_is_saved_and_loaded(tmp_path):
    """A generation config set on the model comes back with it."""
    model = make_model()
    model.generation_config = GenerationConfig(do_sample=True, top_k=7, eos_token_id=96, pad_token_id=96)
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.top_k == 7


def test_one_row_of_positions_is_that_of_all_rows():
    """Positions of one dimension, as stock GPT-2 takes them."""
    model, stock, ids = make_model(), make_stock(), random_ids(3, 9)
    positions = torch.arange(9) + 2
    assert (model(ids, position_ids=positions).logits - stock(ids, position_ids=positions).logits).abs().max() <= 1e-5
