"""Muon for the matrices of the layers, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonalised(x: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration on a stack of matrices [n, rows, columns]: nearly U V^T of each."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.bfloat16()
    tall = y.shape[1] > y.shape[2]
    if tall:
        y = y.transpose(1, 2)
    y = y / (y.flatten(1).float().norm(dim=1)[:, None, None] + 1e-7).to(y.dtype)
    for _ in range(steps):
        gram = y @ y.transpose(1, 2)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (y.transpose(1, 2) if tall else y).float()


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised before each step; matrices of one shape are worked on together."""

    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.02
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                if param.grad is not None:
                    by_shape.setdefault(param.shape, []).append(param)
            for shape, params in by_shape.items():
                updates = []
                for param in params:
                    state = self.state[param]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(param)
                    state["momentum"].lerp_(param.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(param.grad, state["momentum"], group["momentum"]))
                scale = 0.2 * max(shape) ** 0.5 * group["lr"]
                for param, update in zip(params, orthogonalised(torch.stack(updates)), strict=True):
                    param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)
