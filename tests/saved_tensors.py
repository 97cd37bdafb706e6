"""What autograd keeps of a forward pass for the backward pass, counted by the tests themselves."""

from typing import Any

import torch


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts inside `with` what is saved, beside the weights of a model; also of tensors without content."""

    def __init__(self, model: torch.nn.Module):
        self._weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._storages: dict[Any, torch.UntypedStorage] = {}
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._storages[storage._cdata] = storage  # kept, or another one would get its number
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes; each storage is counted once."""
        return sum(storage.nbytes() for storage in self._storages.values())
