"""Hidden states of some layers, taken from passes that are made anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlaif.errors import ModelError
from rlaif.models.shared_base import SharedBase

__all__ = ["StateTap"]


class StateTap:
    """Keeps what the layers of a base put out at the last position of a pass, by hooks on them; the pass
    itself is as it would be without.

    Args:
        layers: Indices as transformers' `hidden_states` has them: 0 is what enters the first layer, i what
            layer i puts out, and the number of layers is the state after the final norm.

    Raises:
        ModelError: The model has no such layer.
    """

    def __init__(self, base: SharedBase, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        body = base.model.get_decoder()
        self._modules = [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
        wrong = [layer for layer in self.layers if not 0 <= layer <= len(self._modules)]
        if wrong:
            raise ModelError(
                f"layer {wrong[0]} is to be read, and the model has {len(self._modules)}",
                where=base.name,
                remedy="use the base that the moderator was trained on",
            )
        self._found: dict[int, Tensor] = {}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside the block passes are read; `states` has those of the latest."""
        hooks = [self._hooked(layer) for layer in self.layers if layer < len(self._modules)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def states(self, last: Tensor) -> Tensor:
        """The states (B, L, H) of the last position, fp32 on the CPU, copied at once for all rows.

        Args:
            last: What the pass returned at that position, (B, H).
        """
        found = [self._found.get(layer, last) for layer in self.layers]
        self._found = {}
        return torch.stack(found, 1).float().cpu()

    def _hooked(self, layer: int) -> Any:
        def enters(_module: nn.Module, inputs: Any, options: Any) -> None:
            self._keep(0, inputs[0] if inputs else options["hidden_states"])

        def leaves(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._keep(layer, output[0] if isinstance(output, tuple) else output)

        if layer == 0:
            return self._modules[0].register_forward_pre_hook(enters, with_kwargs=True)
        return self._modules[layer - 1].register_forward_hook(leaves)

    def _keep(self, layer: int, states: Tensor) -> None:
        self._found[layer] = states[:, -1]
