"""Muon for the weight matrices of the blocks, AdamW for everything else, as one optimizer.

In: a model. Out: what the Trainer, its schedule and its checkpoints take for an ordinary optimizer.
Used by: `trainer`, for `--optim muon`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

# Orthogonalised updates scaled to the size that AdamW's have: 0.2 * sqrt(the larger side). Unlike torch's default it
# is the same for a matrix and its transpose, and GPT-2 stores its matrices as [in, out].
_UPDATE_SCALE = "match_rms_adamw"


class MuonWithAdamW(Optimizer):
    """Orthogonalised momentum for matrices, AdamW for embeddings, biases and LayerNorms.

    Muon replaces the momentum M of a matrix by U V^T, where M = U S V^T, which five Newton-Schulz iterations in bf16
    approximate. It stores one number for each weight where AdamW stores two.

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

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    Scalable for LLM Training", section 2.2, for the scale. Both steps are torch's own.
    """

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
        self._muon = Muon(
            matrices,
            lr=matrix_learning_rate,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn=_UPDATE_SCALE,
        )
        self._adamw = AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
        # AdamW's come first: the learning rate that is logged is that of the first group.
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; with a closure, its value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Groups and state belong to this object, so that schedules and checkpoints see one optimizer. Loading a
        # state exchanges both, so the two are told anew.
        count = len(self._adamw.param_groups)
        self._adamw.param_groups, self._muon.param_groups = self.param_groups[:count], self.param_groups[count:]
        for part in (self._muon, self._adamw):
            part.state = self.state
            part.step()
        return loss


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
