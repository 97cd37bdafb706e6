"""The chunked loss is the plain cross-entropy, whatever the chunk size, dtype and device of compilation."""

import importlib.util
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_hf.model import chunked_loss
from gpt2_hf.model.chunked_loss import IGNORE_INDEX, chunked_cross_entropy, chunked_token_losses

pytestmark = pytest.mark.usefixtures("several_softmax_blocks")


def make_inputs(rows, width=16, vocab=50, ignored=0.0, dtype=torch.float32, padding=0, seed=0):
    """Hidden states, head and labels; a share of the labels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(vocab, width, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, vocab - padding, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE_INDEX
    return hidden, weight, labels


def plain_loss(hidden, weight, labels, label_smoothing=0.0, padding=0):
    """What the chunked loss must equal."""
    logits = hidden @ weight[: weight.shape[0] - padding].t()
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)


def loss_and_gradients(loss_function, hidden, weight, labels, scale=1.0, **options):
    """Loss per row and its gradients."""
    loss = scale * loss_function(hidden, weight, labels, **options) / max(labels.shape[0], 1)
    return loss.detach(), *torch.autograd.grad(loss, [hidden, weight])


@settings(max_examples=60)
@given(
    rows=st.integers(0, 40),
    rows_per_chunk=st.integers(1, 45),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    padding=st.sampled_from([0, 1, 9]),
    seed=st.integers(0, 1000),
)
def test_equals_plain_cross_entropy(rows, rows_per_chunk, ignored, label_smoothing, padding, seed):
    """Loss and gradients equal F.cross_entropy's to 1e-5 for any chunk size, share of ignored rows and smoothing."""
    inputs = make_inputs(rows, ignored=ignored, padding=padding, seed=seed)
    ours = loss_and_gradients(
        chunked_cross_entropy,
        *inputs,
        label_smoothing=label_smoothing,
        num_padding_rows=padding,
        rows_per_chunk=rows_per_chunk,
    )
    plain = loss_and_gradients(plain_loss, *inputs, label_smoothing=label_smoothing, padding=padding)
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(
    rows=st.integers(0, 40),
    rows_per_chunk=st.integers(1, 45),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    padding=st.sampled_from([0, 9]),
    seed=st.integers(0, 1000),
)
def test_token_losses_equal_plain_cross_entropy(rows, rows_per_chunk, ignored, padding, seed):
    """The loss of each position, to 1e-5, in the shape of the labels; 0 where none is scored."""
    hidden, weight, labels = make_inputs(2 * rows, ignored=ignored, padding=padding, seed=seed)
    ours = chunked_token_losses(
        hidden.view(2, rows, 16),
        weight,
        labels.view(2, rows),
        num_padding_rows=padding,
        rows_per_chunk=rows_per_chunk,
    )
    plain = F.cross_entropy(hidden @ weight[: weight.shape[0] - padding].t(), labels, reduction="none")
    torch.testing.assert_close(ours.flatten(), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_losses_in_16_bits_are_those_that_are_summed(dtype):
    """Under autocast the products are in 16 bits and the softmax in fp32, for each position as for the sum."""
    hidden, weight, labels = make_inputs(40, ignored=0.2)
    with torch.autocast("cpu", dtype=dtype):
        losses = chunked_token_losses(hidden, weight, labels, rows_per_chunk=8)
        total = chunked_cross_entropy(hidden, weight, labels, rows_per_chunk=8)
    logits = (hidden.to(dtype) @ weight.to(dtype).t()).float()
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"), atol=1e-5, rtol=0)
    assert losses.dtype == torch.float32 and losses.double().sum().item() == pytest.approx(total.item(), abs=1e-4)


def test_a_wide_head_in_fp32_is_multiplied_in_parts():
    """On a CPU, no product makes more than 512 tokens' logits or gradients; the result is the plain loss."""
    most = {torch.ops.aten.mm.out: 0, torch.ops.aten.addmm_.default: 0}  # logits [R, V], gradient [V, C]

    class MostTokens(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function in most:
                most[function] = max(most[function], *out.shape)
            return out

    inputs = make_inputs(20, vocab=1200)
    with MostTokens():
        ours = loss_and_gradients(chunked_cross_entropy, *inputs, rows_per_chunk=8)
    assert set(most.values()) == {512}
    for mine, theirs in zip(ours, loss_and_gradients(plain_loss, *inputs), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("padding", [0, 5])
def test_a_row_that_stands_for_several_counts_for_all_of_them(label_smoothing, padding):
    """The last row counted 7 times is the plain loss of 7 such rows; its gradient is the sum of theirs."""
    hidden, weight, labels = make_inputs(30, ignored=0.2, padding=padding + 1)
    last = weight.shape[0] - padding - 1
    options = {"label_smoothing": label_smoothing}
    ours = loss_and_gradients(
        chunked_cross_entropy, hidden, weight, labels, num_padding_rows=padding, copies_of_last_row=7, **options
    )
    repeated = torch.cat([weight[:last], weight[last : last + 1].expand(7, -1)])
    plain = loss_and_gradients(plain_loss, hidden, repeated, labels, **options)
    torch.testing.assert_close(ours[0], plain[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[1], plain[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[2][:last], plain[2][:last], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[2][last], plain[2][last:].sum(dim=0), atol=1e-5, rtol=0)


def test_rows_that_align_the_head_change_nothing(monkeypatch):
    """What a GPU's matrix products want, tried on a CPU: the same loss and gradients to the last bit."""
    inputs = make_inputs(20, ignored=0.2, padding=3, dtype=torch.bfloat16)
    monkeypatch.setattr(chunked_loss, "_CPU_LOGITS_PER_SOFTMAX", 64 * 64)  # all rows in one block
    plain = loss_and_gradients(chunked_cross_entropy, *inputs, num_padding_rows=3)
    shapes = []
    mm = torch.mm
    monkeypatch.setattr(chunked_loss, "_HEAD_ROWS_MULTIPLE_OF", {"cpu": 64})
    monkeypatch.setattr(torch, "mm", lambda *args, **out: shapes.append(out["out"].shape) or mm(*args, **out))
    aligned = loss_and_gradients(chunked_cross_entropy, *inputs, num_padding_rows=3)
    assert (64, 16) in shapes and all(map(torch.equal, plain, aligned))


@pytest.mark.parametrize("copies", [1, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_accelerators_softmax_of_16_bits_is_that_in_fp32(dtype, copies):
    """Called directly, for a CPU takes another way: the same loss, the same gradient to a rounding."""
    torch.manual_seed(0)
    logits = (4 * torch.randn(30, 50)).to(dtype)
    labels = torch.randint(0, 44, (30,))
    labels[::4] = IGNORE_INDEX
    targets = chunked_loss._Targets(45, copies)
    expected, grad = chunked_loss._softmax_loss(logits.float(), labels, targets, need_grad=True)
    for need_grad in (False, True):
        loss, got = chunked_loss._mixed_softmax_loss(logits.clone(), labels, targets, torch.float32, need_grad)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(got, grad.to(dtype))
    assert not got[::4].any() and not got[:, 45:].any()


def test_float64_stays_float64():
    """In double precision nothing is rounded to single: the loss agrees to 1e-12."""
    inputs = make_inputs(21, dtype=torch.float64)
    ours = loss_and_gradients(chunked_cross_entropy, *inputs, label_smoothing=0.1, rows_per_chunk=8)
    plain = loss_and_gradients(plain_loss, *inputs, label_smoothing=0.1)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_is_as_exact_as_the_plain_loss(dtype, how):
    """In half precision, loss and gradients err no more against fp32 than the plain loss in that precision does."""
    exact_inputs = make_inputs(64, width=32, vocab=200)
    exact = loss_and_gradients(plain_loss, *exact_inputs)
    inputs = make_inputs(64, width=32, vocab=200, dtype=dtype if how == "weights" else torch.float32)

    def plain_in_float(hidden, weight, labels):
        return F.cross_entropy((hidden @ weight.t()).float(), labels, reduction="sum")

    with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"):
        ours = loss_and_gradients(chunked_cross_entropy, *inputs, rows_per_chunk=16)
        plain = loss_and_gradients(plain_in_float, *inputs)
    assert ours[0].dtype == torch.float32
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype
        error, plain_error = ((x.float() - true).square().mean().sqrt() for x in (mine, theirs))
        assert error <= 1.2 * plain_error + 1e-6


def test_tiny_fp16_gradients_survive():
    """Scaling after the sum keeps fp16 gradients that scaling before it would flush to zero."""
    inputs = make_inputs(8, dtype=torch.float16)
    _, grad_hidden, _ = loss_and_gradients(chunked_cross_entropy, *inputs, scale=1e-5)
    _, exact, _ = loss_and_gradients(chunked_cross_entropy, *inputs)
    torch.testing.assert_close(grad_hidden.float(), exact.float() * 1e-5, atol=6e-8, rtol=0.01)


def test_backward_twice_gives_the_same_gradient():
    """A retained graph can be walked again; the first walk does not change what was saved."""
    hidden, weight, labels = make_inputs(9)
    loss = chunked_cross_entropy(hidden, weight, labels) / 9
    first = torch.autograd.grad(loss, [hidden, weight], retain_graph=True)
    second = torch.autograd.grad(loss, [hidden, weight])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_second_derivative_is_refused(compiles):
    """The loss is differentiable once; asking for more raises instead of giving a wrong answer."""
    hidden, weight, labels = make_inputs(5)
    loss_function = torch.compile(chunked_cross_entropy, backend="eager") if compiles else chunked_cross_entropy
    (plain,) = torch.autograd.grad(loss_function(hidden, weight, labels), hidden)
    (gradient,) = torch.autograd.grad(loss_function(hidden, weight, labels), hidden, create_graph=True)
    assert torch.equal(gradient, plain)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.pow(2).sum().backward()


@pytest.mark.parametrize("trained", ["hidden", "weight", "neither"])
def test_only_what_is_trained_gets_a_gradient(trained):
    """With a frozen head or frozen hidden states (LoRA), the other gradient is right and no work is done for it."""
    hidden, weight, labels = make_inputs(13)
    _, grad_hidden, grad_weight = loss_and_gradients(plain_loss, hidden, weight, labels)
    hidden.requires_grad_(trained == "hidden")
    weight.requires_grad_(trained == "weight")
    loss = chunked_cross_entropy(hidden, weight, labels) / 13
    assert loss.requires_grad == (trained != "neither")
    if trained != "neither":
        loss.backward()
    expected = {"hidden": (hidden, grad_hidden), "weight": (weight, grad_weight)}
    for name, (tensor, gradient) in expected.items():
        if name == trained:
            torch.testing.assert_close(tensor.grad, gradient, atol=1e-5, rtol=0)
        else:
            assert tensor.grad is None


def test_a_label_in_the_padding_of_the_vocabulary_costs_infinitely_much():
    """Ids that only pad the vocabulary have no probability, so the loss says so and not some finite number."""
    hidden, weight, _ = make_inputs(3)
    loss = chunked_cross_entropy(hidden, weight, torch.tensor([1, 49, 2]), num_padding_rows=1)
    assert loss.isinf()


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)], ids=["traced", "inductor"]
)
def test_compiled_as_one_graph(backend):
    """Compiled without a graph break it gives the same numbers, and more rows need no new graph per row count."""
    torch._dynamo.reset()

    def loss_function(hidden, weight, labels):
        return chunked_cross_entropy(hidden, weight, labels, label_smoothing=0.1, rows_per_chunk=8)

    graphs_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = torch.compile(loss_function, fullgraph=True, backend=backend)
    for rows in (20, 21, 22, 23):
        inputs = make_inputs(rows, ignored=0.3)
        ours = loss_and_gradients(compiled, *inputs)
        plain = loss_and_gradients(plain_loss, *inputs, label_smoothing=0.1)
        for mine, theirs in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs_before <= 2


@pytest.mark.parametrize(("vocabulary", "rows"), [(50_257, 16), (8_192, 98), (65, 12_370)])
def test_rows_of_a_softmax_fill_the_cache(vocabulary, rows, monkeypatch):
    """A small vocabulary has more rows at once; with 16 a model of characters spent its time on calls."""
    monkeypatch.undo()
    assert chunked_loss.cpu_rows_per_softmax(torch.empty(4, vocabulary)) == rows


def test_never_holds_all_logits():
    """The largest tensor it makes has one chunk of rows, not all of them."""

    class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == 50:
                self.rows = max(self.rows, out.shape[0])
            return out

    hidden, weight, labels = make_inputs(40, vocab=50)
    with LargestTensor() as largest:
        chunked_cross_entropy(hidden, weight, labels, rows_per_chunk=8).backward()
    assert largest.rows == 16  # the width of the weight's transposed view; chunks have 8
    with LargestTensor() as largest:
        chunked_token_losses(hidden, weight, labels, rows_per_chunk=8)
    assert largest.rows == 16


@pytest.mark.parametrize("copies", [1, 5])
def test_fp16_sums_of_many_rows_do_not_overflow(copies):
    """Hidden states that all point one way: the sum over a chunk's rows is beyond fp16, and no loss scale helps."""
    hidden = torch.full((2048, 16), 60.0) + torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(40, 16)
    labels = torch.zeros(2048, dtype=torch.long)
    grads = {}
    for dtype in (torch.float32, torch.float16):
        parts = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        with torch.autocast("cpu", dtype=torch.float16, enabled=dtype == torch.float16):
            loss = chunked_cross_entropy(*parts, labels, copies_of_last_row=copies, rows_per_chunk=2048)
        grads[dtype] = torch.autograd.grad(loss / len(labels), parts)
    exact, half = grads[torch.float32], grads[torch.float16]
    assert exact[1].abs().max() * len(labels) > torch.finfo(torch.float16).max
    for a, b in zip(exact, half, strict=True):
        assert torch.isfinite(b).all() and (a - b).abs().max() <= 2e-3 * a.abs().max()


def test_a_copy_that_travelled_with_a_model_can_be_compiled_beside_the_package(monkeypatch):
    """The operation of a compiled loss stays there for both, whichever was loaded last."""
    spec = importlib.util.spec_from_file_location("gpt2_hf.model.travelled", chunked_loss.__file__)
    copy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, copy)
    spec.loader.exec_module(copy)
    hidden, weight = torch.randn(1, 5, 8, requires_grad=True), torch.randn(11, 8, requires_grad=True)
    labels = torch.randint(0, 11, (1, 5))
    expected = chunked_loss.chunked_cross_entropy(hidden, weight, labels)
    for module in (chunked_loss, copy):
        compiled = torch.compile(module.chunked_cross_entropy, backend="eager")
        assert compiled(hidden, weight, labels).item() == pytest.approx(expected.item(), abs=1e-6)
