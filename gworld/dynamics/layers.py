"""Small pieces that the operators share: bounded coefficients and a plain network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _ClampThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, low: float, high: float) -> Tensor:
        context.save_for_backward(value)
        context.bounds = (low, high)
        return value.clamp(low, high)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,) = context.saved_tensors
        (gradient,), (low, high) = gradients, context.bounds
        outward = ((value >= high) & (gradient < 0)) | ((value <= low) & (gradient > 0))
        return torch.where(outward, torch.zeros_like(gradient), gradient), None, None


def clamp_through(value: Tensor, low: float, high: float) -> Tensor:
    """`value` kept within its bounds; gradients pass outside them too where they lead back in.

    So a bound (no friction, no loss) is reached exactly, and what overshot can return.
    """
    return _ClampThrough.apply(value, low, high) if torch.is_grad_enabled() else value.clamp(low, high)


def dead_zone(value: Tensor, width: float) -> Tensor:
    """`value` moved towards zero by `width`, zero within: what does not help vanishes altogether."""
    return value.sign() * (value.abs() - width).clamp_min(0.0)


def perceptron(sizes: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with SiLU between them, drawn from `generator`."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
        with torch.no_grad():
            linear.weight.normal_(0.0, inputs**-0.5, generator=generator)
            linear.bias.zero_()
        layers += [linear] if index == len(sizes) - 2 else [linear, nn.SiLU()]
    return nn.Sequential(*layers)


def coefficient(value: float, spread: float, generator: torch.Generator) -> nn.Parameter:
    """A learned number that begins near `value`."""
    return nn.Parameter(value + spread * torch.randn((), generator=generator))
