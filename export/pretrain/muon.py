"""The optimizer of the matrices in pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal by Newton-Schulz (Jordan et al. 2024), with AdamW's size of steps (Liu et al. 2025).

    torch.optim.Muon computes in bfloat16, which takes 30 times as long on CPUs without such instructions.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step for all matrices; a matrix of 3 n rows is the fused projection of Q, K and V, and split.

        A convolution is a matrix with a row per output (Jordan et al. 2024). Parameters without a gradient stay.
        """
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].mul_(0.95).add_(p.grad)
                update = (p.grad + 0.95 * momentum).flatten(1)
                parts = update.chunk(3) if p.ndim == 2 and p.shape[0] == 3 * p.shape[1] else (update,)
                size = 0.2 * math.sqrt(max(parts[0].shape))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(torch.cat([_orthogonal(part) for part in parts]).reshape(p.shape), alpha=-group["lr"] * size)


def _orthogonal(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal rows or columns, roughly: five Newton-Schulz steps."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
