"""Attention in chunks equals attention in one piece, gradients and dropout included."""

import itertools
import math

import pytest
import torch

from gpt2_hf.model import chunked_attention
from gpt2_hf.model.chunked_attention import chunked_causal_attention
from gpt2_hf.model.dropout import exact_probability


def make_inputs(num_rows, num_heads=3, batch=2, dtype=torch.float32):
    torch.manual_seed(num_rows)
    return [torch.randn(batch, num_heads, num_rows, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


def plain_attention(query, key, value, noise=1.0):
    """The formula, with the factors of dropout given."""
    num_rows = query.shape[-2]
    scores = query @ key.transpose(-1, -2) * 8**-0.5
    scores = scores.masked_fill(torch.ones(num_rows, num_rows).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) * noise) @ value


def value_and_gradients(attention, inputs):
    output = attention(*inputs)
    weighting = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weighting).sum(), inputs)]


@pytest.mark.parametrize("num_rows", [1, 7, 128, 129, 300])
def test_equals_the_formula(monkeypatch, num_rows):
    """Whatever the chunks cut, in fp32."""
    monkeypatch.setattr(chunked_attention, "_SCORES_PER_CHUNK", 2 * 128 * 300)
    inputs = make_inputs(num_rows)
    mine = value_and_gradients(lambda q, k, v: chunked_causal_attention(q, k, v, scaling=8**-0.5), inputs)
    for a, b in zip(mine, value_and_gradients(plain_attention, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradients_of_doubles():
    """Against finite differences."""
    inputs = [x.double().detach().requires_grad_() for x in make_inputs(5, num_heads=1, batch=1)]
    assert torch.autograd.gradcheck(lambda q, k, v: chunked_causal_attention(q, k, v, scaling=0.3), inputs)


def test_a_second_derivative_is_refused():
    """Also of a loss whose own derivative is a constant."""
    inputs = make_inputs(5)
    output = chunked_causal_attention(*inputs, scaling=0.3)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.pow(2).sum().backward()


def test_dropout_equals_the_formula_with_the_same_mask(monkeypatch):
    """Dropped weights and their gradients, chunk by chunk, are those of the mask that was drawn."""
    drawn = {}  # by seed: the backward pass makes the masks of the forward pass anew
    draw = chunked_attention.keep_mask

    def remember(shape, p, seed):
        mask = draw(shape, p, seed)
        assert torch.equal(drawn.setdefault(seed, mask.clone()), mask)
        return mask

    monkeypatch.setattr(chunked_attention, "keep_mask", remember)
    inputs = make_inputs(200)
    mine = value_and_gradients(lambda q, k, v: chunked_causal_attention(q, k, v, scaling=8**-0.5, dropout=0.3), inputs)
    noise = torch.zeros(6, 200, 200)
    for chunk, keep in zip(chunked_attention._chunks(inputs[0].flatten(0, 1), (0, 200)), drawn.values(), strict=True):
        noise[chunk.heads, chunk.rows, chunk.keys] = (keep != 0).float() / (1 - exact_probability(0.3))
    assert 0.25 < float((noise.tril() == 0).float().mean() - 199 / 400) * 400 / 201 < 0.35
    noise = noise.view(2, 3, 200, 200)
    plain = value_and_gradients(lambda q, k, v: plain_attention(q, k, v, noise), inputs)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_bf16_is_as_good_as_torchs():
    """Softmax in fp32: the error against fp32 inputs is not above that of torch's kernel."""
    exact = make_inputs(150)
    halves = [x.detach().bfloat16().requires_grad_() for x in exact]
    true = value_and_gradients(plain_attention, [x.float().detach().requires_grad_() for x in halves])
    mine = value_and_gradients(lambda q, k, v: chunked_causal_attention(q, k, v, scaling=8**-0.5), halves)
    theirs = value_and_gradients(
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=8**-0.5),
        halves,
    )
    for a, b, c in zip(mine, theirs, true, strict=True):
        error, torchs = ((x.float() - c).square().mean().sqrt() for x in (a, b))
        assert error <= 1.3 * torchs + 1e-5


@pytest.mark.parametrize(
    ("num_positions", "dtype"), [(300, torch.float32), (320, torch.float32), (320, torch.bfloat16)]
)
def test_documents_do_not_see_each_other(num_positions, dtype):
    """A row of several documents gives what each alone gives, and nothing where no document is."""
    inputs = make_inputs(num_positions, batch=1, dtype=dtype)
    boundaries = (0, 1, 130, 290, 300)

    def apart(*tensors):
        parts = [
            chunked_causal_attention(*(x[:, :, begin:end] for x in tensors), scaling=8**-0.5)
            for begin, end in itertools.pairwise(boundaries)
        ]
        rest = [0.0 * tensors[0][:, :, boundaries[-1] :]]
        return torch.cat([*parts, *rest], dim=2)

    together = value_and_gradients(
        lambda q, k, v: chunked_causal_attention(q, k, v, scaling=8**-0.5, boundaries=boundaries), inputs
    )
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    for a, b in zip(together, value_and_gradients(apart, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def test_scores_of_bf16_are_exact_and_no_setting_stays():
    """The products that run as bf16 are those of fp32 with the same numbers, and only they do."""
    query, key, _ = (x.detach().bfloat16().float().flatten(0, 1) for x in make_inputs(64))
    before = torch.backends.mkldnn.matmul.fp32_precision
    with chunked_attention._exact_products(torch.bfloat16):
        fast = torch.bmm(query, key.transpose(1, 2))
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    torch.testing.assert_close(fast, torch.bmm(query, key.transpose(1, 2)), atol=1e-5, rtol=1e-5)
    with chunked_attention._exact_products(torch.float32):
        assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_threads_leave_the_setting_as_the_first_one_found_it():
    """In whatever order they finish; until the last one has, the products of all are exact."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    first, second = (chunked_attention._exact_products(torch.bfloat16) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    try:
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = before
