"""Muon for the hidden weight matrices of the blocks, AdamW for everything else, as one optimizer.

In: a model. Out: what the Trainer, its schedule and its checkpoints take for an ordinary optimizer.
For `--optim muon`.
"""

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from ..options.training_arguments import GPT2HFTrainingArguments
from ..runtime.precision import resolve_precision

# Five times x -> a x + b x^3 + c x^5 brings singular values that are not tiny to between 0.7 and 1.2.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Matrices of one shape are orthogonalised together, in parts of 64 MiB in fp32.
_ELEMENTS_AT_ONCE = 1 << 24


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum for matrices, AdamW for embeddings, biases and LayerNorms.

    Muon replaces the momentum M of a matrix by U V^T, where M = U S V^T, see `orthogonalized`. It stores one number
    for each weight where AdamW stores two.

    As torch's fused optimizers do, it leaves out a step on the device, unseen by the host, where the attribute
    `found_inf` is a tensor above 0, and divides the gradients by the attribute `grad_scale`.

    Args:
        matrices: two-dimensional parameters, for Muon.
        groups: parameter groups for AdamW, with their `weight_decay`.
        learning_rate: AdamW's.
        matrix_learning_rate: Muon's; the singular values of an update are about 0.2 * sqrt(the larger side) times
            this, so that its elements have the size of AdamW's.
        momentum: Muon's, with Nesterov's look ahead.
        weight_decay: decoupled, of the matrices.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.

    Raises:
        ValueError: if one of `matrices` is none.

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2, for the scale. `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` computes
    the same, but matrix by matrix, in bf16 also where that is slow, and knows no `found_inf`.
    """

    _step_supports_amp_scaling = True  # who sets these two attributes asks for it

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        groups: list[dict[str, Any]],
        *,
        learning_rate: float,
        matrix_learning_rate: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        self._adamw = AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
        matrices = list(matrices)
        for matrix in matrices:
            if matrix.ndim != 2:
                raise ValueError(f"Muon is for matrices, got a parameter of shape {tuple(matrix.shape)}")
        settings = {"lr": matrix_learning_rate, "momentum": momentum, "weight_decay": weight_decay}
        # AdamW's come first: the learning rate that is logged is that of the first group.
        # Each group has a rate of its own; schedules with an end above 0 ask for this one.
        super().__init__([*self._adamw.param_groups, {"params": matrices, **settings}], defaults={"lr": learning_rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; with a closure, its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and state belong to this object, so that schedules and checkpoints see one optimizer. Loading a
        # state exchanges both, so AdamW is told anew.
        self._adamw.param_groups, self._adamw.state = self.param_groups[:-1], self.state
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        self._adamw.found_inf, self._adamw.grad_scale = found_inf, grad_scale
        self._adamw.step()
        muon = self.param_groups[-1]
        for matrices in _alike(p for p in muon["params"] if p.grad is not None):
            self._step_matrices(matrices, muon, found_inf, grad_scale)
        return loss

    def _step_matrices(
        self, matrices: list[nn.Parameter], group: dict[str, Any], found_inf: Tensor | None, grad_scale: Tensor | None
    ) -> None:
        """Muon's step for matrices of one shape, or that of the transpose."""
        lr, momentum = group["lr"], group["momentum"]
        device = matrices[0].device  # of several, as `device_map="auto"` makes them, each has matrices of its own
        found_inf, grad_scale = (
            None if verdict is None else verdict.to(device, non_blocking=True) for verdict in (found_inf, grad_scale)
        )
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        means = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        gradients = [matrix.grad for matrix in matrices]
        skip = found_inf > 0 if found_inf is not None else None
        if grad_scale is not None:
            gradients = [gradient / grad_scale for gradient in gradients]
        if skip is not None:  # the mean stays what it is, and no NaN goes further
            gradients = [torch.where(skip, *pair) for pair in zip(means, gradients, strict=True)]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, means, momentum)
        stacked = torch.stack([_wide(update) for update in ahead])
        updates = orthogonalized(stacked, _product_dtype(stacked.device.type))
        keep: float | Tensor = 1 - lr * group["weight_decay"]
        if skip is not None:
            updates, keep = torch.where(skip, 0.0, updates), torch.where(skip, 1.0, keep)
        torch._foreach_mul_(matrices, keep)
        size = 0.2 * math.sqrt(max(matrices[0].shape)) * lr
        for matrix, update in zip(matrices, updates, strict=True):
            _wide(matrix).add_(update, alpha=-size)


def muon_for(model: PreTrainedModel, args: GPT2HFTrainingArguments, decayed: Collection[str]) -> MuonWithAdamW:
    """The optimizer of a model, as the arguments say.

    Args:
        model: whose parameters are trained.
        args: learning rates, decays, betas.
        decayed: names of the parameters that `weight_decay` acts on; the hidden matrices have one of their own.
    """
    matrices = hidden_matrices(model)
    others = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in matrices}
    decay, of_matrices = args.weight_decay, args.muon_weight_decay
    return MuonWithAdamW(
        matrices.values(),
        [
            {"params": [p for name, p in others.items() if name in decayed], "weight_decay": decay},
            {"params": [p for name, p in others.items() if name not in decayed], "weight_decay": 0.0},
        ],
        learning_rate=args.learning_rate,
        matrix_learning_rate=args.muon_learning_rate or args.learning_rate,
        momentum=args.muon_momentum,
        weight_decay=decay if of_matrices is None else of_matrices,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
    )


def orthogonalized(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V^T of each matrix U S V^T, by five Newton-Schulz iterations.

    Args:
        matrices: `[B, M, N]` with M no larger than N.
        dtype: of the products; 16 bits are enough.

    Returns:
        `[B, M, N]` in that dtype. Singular values are between 0.7 and 1.2 but where they were tiny.
    """
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    scaled = (matrices / norms.clamp(min=1e-7)).to(dtype)
    if scaled.device.type == "cpu" and dtype.itemsize == 2:  # where several at once are not known to be faster
        return torch.stack([_newton_schulz(matrix, torch.addmm) for matrix in scaled])
    return _newton_schulz(scaled, torch.baddbmm)


def _newton_schulz(result: Tensor, add_product: Callable[..., Tensor]) -> Tensor:
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_ITERATIONS):
        gram = result @ result.mT
        polynomial = add_product(gram, gram, gram, beta=b, alpha=c)
        result = add_product(result, polynomial, result, beta=a)
    return result


@functools.cache
def _product_dtype(device_type: str) -> torch.dtype:
    """The dtype for products that `--precision auto` takes there; asked for in every step."""
    return resolve_precision("auto", device_type).dtype


def _alike(matrices: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Matrices that can be stacked, transposed where they are tall, in parts that are not too large."""
    buckets: dict[Any, list[nn.Parameter]] = {}
    for matrix in matrices:
        buckets.setdefault((_wide(matrix).shape, matrix.dtype, matrix.device), []).append(matrix)
    for bucket in buckets.values():
        count = max(_ELEMENTS_AT_ONCE // bucket[0].numel(), 1)
        for first in range(0, len(bucket), count):
            yield bucket[first : first + count]


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def state_bytes(model: PreTrainedModel, uses_muon: bool) -> int:
    """What the optimizer keeps in fp32: AdamW two numbers for each parameter, Muon one for each of its own."""
    of_muon = sum(p.numel() for p in hidden_matrices(model).values()) if uses_muon else 0
    return 4 * (2 * sum(p.numel() for p in model.parameters()) - of_muon)


def hidden_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The trainable two-dimensional parameters that neither embed tokens or positions nor make logits, by name."""
    outside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and id(parameter) not in outside
    }
