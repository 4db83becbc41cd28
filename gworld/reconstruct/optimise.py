"""The two numeric tools of a training step, fused where our native code runs and as a torch twin elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gworld.render.metrics import ssim_map
from gworld.render.native import native_cpu_status
from gworld.render.native_train import AdamOptions, AdamState, adam_step, l1_ssim_loss

Gradients = Mapping[str, Tensor | None]
DC_GAIN = 20.0
"""How much faster the mean colour learns than view-dependent colour (Kerbl et al. 2023)."""


@dataclass(frozen=True)
class Tools:
    """`loss(image, truth, ssim_weight=, mask=)` and `adam(params, gradients, state, rates, options=, rows=)`."""

    loss: Callable[..., Tensor]
    adam: Callable[..., AdamState]


def choose_tools(device: torch.device, native: bool | None = None) -> Tools:
    """Native tools on a CPU that has the library (or where `native` says so), else their torch twins."""
    if native is None:
        native = device.type == "cpu" and native_cpu_status() is None
    return Tools(l1_ssim_loss, adam_step) if native else Tools(torch_loss, torch_adam)


def torch_loss(image: Tensor, truth: Tensor, *, ssim_weight: float = 0.2, mask: Tensor | None = None) -> Tensor:
    """`native_train.l1_ssim_loss` in torch: `(1 - w) mean |image - truth| + w (1 - mean SSIM)`, over the mask."""
    if mask is not None:
        weights = mask.to(image.dtype)[..., None]
        image = torch.where(weights > 0, truth + weights * (image - truth), truth)
    else:
        weights = image.new_ones(()).expand(*image.shape[:-1], 1)
    total = 3 * weights.sum().clamp_min(1e-12)
    l1 = (image - truth).abs().sum() / total  # already weighted by the blend
    if ssim_weight == 0:
        return l1
    dissimilarity = ((1 - ssim_map(image, truth)) * weights).sum() / total
    return (1 - ssim_weight) * l1 + ssim_weight * dissimilarity


def torch_adam(
    params: Mapping[str, Tensor],
    gradients: Gradients,
    state: AdamState,
    learning_rates: Mapping[str, float],
    *,
    options: AdamOptions = AdamOptions(),  # noqa: B008 (frozen)
    rows: str | Tensor = "all",
) -> AdamState:
    """`native_train.adam_step` in torch, on any device: the same rows, the same bias correction, in place."""
    step = state.step + 1
    first_share = 1 - options.beta1**step if options.bias_correction else 1.0
    second_share = 1 - options.beta2**step if options.bias_correction else 1.0
    taken = {name: gradient for name in params if (gradient := gradients.get(name)) is not None}
    chosen = rows if isinstance(rows, Tensor) else None
    if isinstance(rows, str) and rows == "touched":
        chosen = torch.stack([(g.reshape(len(g), -1) != 0).any(1) for g in taken.values()]).any(0)
    for name, gradient in taken.items():
        first, second = state.first[name], state.second[name]
        keep = None if chosen is None else chosen.reshape(-1, *[1] * (gradient.ndim - 1))
        new_first = torch.lerp(first, gradient, 1 - options.beta1)
        new_second = second * options.beta2 + gradient.square() * (1 - options.beta2)
        change = new_first / first_share / ((new_second / second_share).sqrt() + options.eps)
        value = params[name] - learning_rates[name] * change
        for target, new in ((first, new_first), (second, new_second), (params[name], value)):
            target.copy_(new if keep is None else torch.where(keep, new, target))
    return AdamState(step, state.first, state.second)


def gaussians_step(
    tools: Tools,
    params: Mapping[str, Tensor],
    gradients: Gradients,
    state: AdamState,
    rates: Mapping[str, float],
    touched: Tensor,
) -> AdamState:
    """One sparse Adam step of Gaussians; `rates["sh"]` is that of the mean colour, other harmonics learn slower.

    Adam's change is linear in its rate, so one pass over all harmonics at the slow rate, after which the mean colour
    is carried on in the direction it went, equals two passes at two rates.
    """
    sh = params["sh"]
    slow = {**rates, "sh": rates["sh"] / DC_GAIN} if sh.shape[1] > 1 else rates
    before = sh[:, 0].clone() if sh.shape[1] > 1 else None
    state = tools.adam(params, gradients, state, slow, rows=touched)
    if before is not None:
        sh[:, 0] += (DC_GAIN - 1) * (sh[:, 0] - before)
    return state


def decayed(start: float, share: float, progress: float) -> float:
    """A rate that falls exponentially from `start` to `share` of it as `progress` goes from 0 to 1."""
    return start * math.exp(math.log(share) * min(max(progress, 0.0), 1.0))
