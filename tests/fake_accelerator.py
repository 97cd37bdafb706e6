"""Training steps on a fake accelerator: `python -m tests.fake_accelerator`.

torch's fake tensors know shape, type and device, and hold no numbers. A step that mixes devices, or for which the host
must wait to read a number, ends in an error here, as it would cost an error or time on a GPU. Not in this process's
neighbours: torch can be given such a device only once, and everything would then see an accelerator.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from gpt2_hf import GPT2HFForCausalLM
from gpt2_hf.data.collators import FlatteningCollator, PaddingCollator
from gpt2_hf.model import modeling_gpt2_hf
from gpt2_hf.model.chunked_loss import chunked_cross_entropy
from gpt2_hf.trainer.callbacks import NonFiniteGuard
from gpt2_hf.trainer.distillation import Distillation, TeacherOutput, chunked_distillation
from gpt2_hf.trainer.muon import MuonWithAdamW, hidden_matrices

from .tiny_models import make_model

DEVICE = "fake"
TESTS = Path(__file__).resolve().parent
SAMPLES = [{"input_ids": np.arange(length)} for length in (5, 20, 3, 12)]


class FakeBackend(_DummyBackendModule):
    """With the formats of its autocast, which torch asks for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class Waits(TorchDispatchMode):
    """Notes where the host waits for the device, and answers in the device's place where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is torch.ops.aten._local_scalar_dense:
            return self._read(args[0])
        result = func(*args, **kwargs)
        if packet is torch.ops.aten._to_copy and args[0].device != result.device and not kwargs.get("non_blocking"):
            self._note(f"a copy of {tuple(result.shape)}")
        if packet is torch.ops.aten.copy_ and _is_waited_for(*args, **kwargs):
            self._note(f"a copy into {tuple(result.shape)}")
        if packet in (torch.ops.aten.index_put, torch.ops.aten.index_put_) and _has_mask(args[1]):
            self._note("a mask as an index, of which the host must know how many it chooses")
        return result

    def _read(self, tensor: torch.Tensor) -> float:
        if tensor.device.type != DEVICE:  # the host's own
            return 1
        self._note("a number is read")
        return 1.0 if tensor.is_floating_point() else -1

    def _note(self, what: str) -> None:
        self.found.append(f"{what}: {caller()}")


def _is_waited_for(into: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> bool:
    return into.device != source.device and source.ndim > 0 and not non_blocking


def _has_mask(indices: Any) -> bool:
    return any(x is not None and x.dtype == torch.bool and x.device.type == DEVICE for x in indices)


def caller() -> str:
    """Where in this package, transformers, accelerate or torch's optimizers something is done."""
    torch_itself = os.sep + os.path.join("site-packages", "torch") + os.sep
    frames = [each for each in traceback.extract_stack() if torch_itself not in each.filename]
    last = [each for each in frames if Path(each.filename).parent != TESTS][-1]
    name = last.filename.removeprefix(f"{TESTS.parent}{os.sep}")
    return f"{Path(name.rpartition('site-packages' + os.sep)[2]).as_posix()} {last.name}"


def take_steps(model: GPT2HFForCausalLM, optimizer: torch.optim.Optimizer, batch: dict[str, Any], steps: int) -> None:
    """Steps between two logs, each with its batch from the host; none of them waits."""
    with Waits() as waits:
        for _ in range(steps):
            host = {
                name: torch.empty(x.shape, dtype=x.dtype) if isinstance(x, torch.Tensor) else x
                for name, x in batch.items()
            }
            train_step(model, optimizer, send_to_device(host, torch.device(DEVICE), non_blocking=True))
    assert not waits.found, waits.found[:5]
    with Waits() as waits:  # and they would be found
        torch.empty(3).to(DEVICE)
    assert waits.found


def on_device(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the Trainer hands it over."""
    return {name: like(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def like(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape and type on the device."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def make_models() -> dict[str, GPT2HFForCausalLM]:
    """In training mode, not yet on the device."""
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)
    plain, tied, recomputing = (make_model(n_layer=1, **dropout).train() for _ in range(3))
    assert tied.tie_unused_tokens(torch.arange(50)) > 0
    recomputing.gradient_checkpointing_enable()
    return {"plain": plain, "tied unused tokens": tied, "activation checkpointing": recomputing}


def move(model: GPT2HFForCausalLM) -> None:
    """To the device; `Module.to` cannot."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(like(parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, like(buffer))
    model.tie_weights()


def make_optimizers(model: GPT2HFForCausalLM) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """Both that the recipes use."""
    yield "AdamW", torch.optim.AdamW(model.parameters(), fused=True)
    matrices = hidden_matrices(model)
    others = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    groups = [{"params": others}]
    yield "Muon", MuonWithAdamW(matrices.values(), groups, learning_rate=1e-3, matrix_learning_rate=1e-3)


def train_step(model: GPT2HFForCausalLM, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    """As the Trainer takes it, with and without smoothed labels."""
    guard = NonFiniteGuard()
    for smoothing in (0.0, 0.1):
        model(**batch, label_smoothing=smoothing).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        guard.observe(norm, optimizer, step=1, uses_scaler=False)
        optimizer.step()
        optimizer.zero_grad()


def loss_in_16_bits() -> None:
    """The head's loss, which goes a way of its own there, with its gradients; autocast does not reach this device."""
    hidden, weight = (like(torch.empty(rows, 32, dtype=torch.bfloat16)).requires_grad_() for rows in (40, 97))
    labels = like(torch.empty(40, dtype=torch.long))
    for copies in (1, 7):
        chunked_cross_entropy(hidden, weight, labels, num_padding_rows=3, copies_of_last_row=copies).backward()


def learn_from_teachers(batches: dict[str, dict[str, Any]]) -> None:
    """Steps with two teachers, and the loss in 16 bits, where the rows of a head are filled up; no step waits."""
    student, *teachers = (make_model(n_layer=1, n_embd=width).train() for width in (32, 16, 32))
    for model in (student, *teachers):
        move(model)
    taught = Distillation(teachers, alpha=0.45, temperature=1.2)
    with Waits() as waits:
        for batch in map(on_device, batches.values()):
            student(**batch, summed_loss=taught.read(batch), num_items_in_batch=30).loss.backward()
        hidden, weight = (like(torch.empty(rows, 32, dtype=torch.bfloat16)).requires_grad_() for rows in (40, 97))
        of_teacher = TeacherOutput(hidden.detach(), weight.detach(), num_rows=90, copies_of_last_row=5)
        labels = like(torch.empty(40, dtype=torch.long))
        options = {"alpha": 0.45, "temperature": 1.2, "num_padding_rows": 7, "copies_of_last_row": 5}
        chunked_distillation(hidden, weight, labels, [of_teacher], **options)[0].backward()
    assert not waits.found, waits.found


def kernel_for_unequal_lengths(models: list[GPT2HFForCausalLM], batch: dict[str, Any]) -> None:
    """Attention as on a card that has the kernel."""
    for model in models:
        move(model)
        kernel = mock.patch.object(modeling_gpt2_hf, "missing_for_variable_lengths", lambda *args: None)
        with kernel, Waits() as waits:
            model(**on_device(batch)).loss.backward()
        assert not waits.found, waits.found


def on_two_devices() -> None:
    """Muon's step and the look at the weights of a model that `device_map` has divided."""
    here, there = (torch.nn.Parameter(torch.empty(8, 16, device=f"{DEVICE}:{index}")) for index in (0, 1))
    bias = torch.nn.Parameter(torch.empty(16))
    optimizer = MuonWithAdamW(
        [there, here], [{"params": [bias]}], learning_rate=1e-3, matrix_learning_rate=1e-3, weight_decay=0.1
    )
    guard = NonFiniteGuard(deferred=True)
    for norm in (here.new_empty(()), there.new_empty(())):
        for parameter in (here, there):
            parameter.grad = torch.empty_like(parameter)
        guard.reset()
        guard.observe(norm, optimizer, step=1, uses_scaler=False)
        optimizer.step()
    divided = torch.nn.ParameterList([here, there])
    expect(DataDependentOutputException, lambda: guard.check_weights(divided, step=1))  # it comes to read them


@torch.no_grad()
def evaluate(model: GPT2HFForCausalLM, batch: dict[str, Any]) -> torch.Tensor:
    """The loss of a batch."""
    loss = model.eval()(**on_device(batch), return_logits=False, use_cache=False).loss
    model.train()
    return loss


def expect(error: type[Exception], action: Callable[[], Any]) -> None:
    """What this module is to find must not go unnoticed."""
    try:
        action()
    except error:
        return
    raise AssertionError(f"no {error.__name__}")


def main() -> None:
    """Take the steps; a line for each."""
    _setup_privateuseone_for_python_backend(DEVICE, backend_module=FakeBackend())
    batches = {"padded": PaddingCollator(0)(SAMPLES), "flattened": FlatteningCollator()(SAMPLES)}
    models = make_models()
    halved = [make_model(n_layer=1, attn_pdrop=0.1).to(dtype).train() for dtype in (torch.bfloat16, torch.float16)]
    with FakeTensorMode():
        loss_in_16_bits()
        print("loss in 16 bits")
        learn_from_teachers(batches)
        print("teachers")
        kernel_for_unequal_lengths(halved, batches["flattened"])
        print("kernel for unequal lengths")
        on_two_devices()
        print("two devices")
        for kind, model in models.items():
            move(model)
            for layout, batch in batches.items():
                for name, optimizer in make_optimizers(model):
                    take_steps(model, optimizer, batch, steps=5 if kind == "plain" else 1)
                    print(f"{kind}, {layout}, {name}")
                loss = evaluate(model, batch)
                expect(DataDependentOutputException, loss.item)
                expect(RuntimeError, lambda loss=loss: loss.view(1) + torch.ones(1))


if __name__ == "__main__":
    main()
