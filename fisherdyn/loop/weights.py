"""The tensors of a model that training changes."""

from __future__ import annotations

import torch
from torch import Tensor


class TrainedWeights:
    """Parameters that train, and buffers. Weights that never train come with the model, and are not copied.

    Args:
        tensors: the model's own, by name.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        """Copies by name."""
        return {name: tensor.detach().clone() for name, tensor in self._tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts copies back into the model.

        Raises:
            ValueError: tensors of other names or shapes; the model is then as it was.
        """
        was, now = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (state, self._tensors))
        if differing := sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
            shapes = [f"weight {name} of shape {was.get(name)}, not {now.get(name)}" for name in differing[:6]]
            raise ValueError("; ".join(shapes))
        for name, tensor in state.items():
            self._tensors[name].copy_(tensor)
