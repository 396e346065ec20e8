"""Two optimisers: Muon for the dense matrices, AdamW for everything else.

Muon (Jordan et al. 2024) replaces a matrix's momentum by its nearest semi-orthogonal matrix, found with a
few Newton-Schulz steps; it needs about half of AdamW's tokens. The experts stay with AdamW: the
orthogonalisation of 48 experts' matrices would cost as much as the gradients of a batch this small.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .model import DemoModel

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """The Newton-Schulz iteration on [rows, columns]: all singular values go to about one."""
    a, b, c = COEFFICIENTS
    x = update / (update.norm() + 1e-7)
    wide: Tensor = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step is scaled so that its entries have AdamW's size at the same rate."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    direction = self._direction(p, p.grad, group["momentum"])
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)

    def _direction(self, p: Tensor, grad: Tensor, momentum: float) -> Tensor:
        """Nesterov's momentum, orthogonalised."""
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(grad, 1 - momentum)
        return orthogonalise(grad.lerp(buffer, momentum))


def make_optimisers(model: DemoModel, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the 2-D matrices inside the layers, AdamW for embeddings, head, gates, norms and experts."""
    muon: list[Tensor] = []
    plain: list[Tensor] = []
    for name, p in model.named_parameters():
        inside = name.startswith("layers.") and p.dim() == 2 and ".gate.weight" not in name
        (muon if inside else plain).append(p)
    adam = torch.optim.AdamW(plain, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    return [Muon(muon, muon_lr), adam]
