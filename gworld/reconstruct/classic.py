"""Classic density control: clone what is small, split what is large, prune what is faint, reset opacity now and then.

Source: Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field Rendering", 2023, section 5. Gaussians are
chosen by how strongly the loss pulls at their centres in the picture; where a budget is given the most wanting ones
come first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.reconstruct.density import Grown, Params, append_rows, keep_rows
from gworld.render.native_train import AdamState
from gworld.scene.cameras import Cameras

DEAD = 0.005
SHRINK = 1.6
RESET = 0.01


@dataclass(frozen=True)
class ClassicOptions:
    """When classic density control acts."""

    gradient: float = 2e-4
    """Mean pull on a centre, in half picture widths, from which a Gaussian is cloned or split."""
    large: float = 0.01
    """Scale, as a share of the scene's width, above which a Gaussian is split instead of cloned."""
    too_large: float = 0.5
    """Scale, as a share of the scene's width, above which a Gaussian is pruned."""
    resets: int = 4
    """How often opacities are reset while Gaussians are still added."""


def centre_pull(gradient: Float[Tensor, "N 3"], means: Float[Tensor, "N 3"], cameras: Cameras) -> Float[Tensor, " N"]:
    """Length of the loss' gradient by the centres' places in the picture, in half picture widths.

    The backends give gradients by centres in space; the part across the viewing ray, times depth over focal length, is
    that by the picture's pixels (to first order; the part by the size of the footprint is along the ray).
    """
    pose = cameras.world_from_camera[0]
    ray = means - pose[:3, 3]
    direction = torch.nn.functional.normalize(ray, dim=1)
    across = gradient - (gradient * direction).sum(1, keepdim=True) * direction
    depth = (ray @ pose[:3, 2]).clamp_min(0)
    return across.norm(dim=1) * depth / cameras.K[0, 0, 0] * (0.5 * max(cameras.width, cameras.height))


def control_classic(
    params: Params,
    adam: AdamState,
    pull: Tensor,
    limit: int,
    width: float,
    generator: torch.Generator,
    options: ClassicOptions = ClassicOptions(),
) -> Grown:
    """Clone, split and prune; `pull` is the mean of `centre_pull` over the views that saw each Gaussian."""
    scale = params["log_scales"].exp().amax(1)
    wanting = (pull > options.gradient).nonzero()[:, 0]
    room = max(0, limit - len(pull))
    if len(wanting) > room:
        wanting = wanting[pull[wanting].argsort(descending=True, stable=True)[:room]].sort().values
    large = scale[wanting] > options.large * width
    cloned, split = wanting[~large], wanting[large]
    new = {name: torch.cat([p[cloned], p[split]]) for name, p in params.items()}
    _scatter(new, len(cloned), generator)
    _scatter_in_place(params, split, generator)
    joined = {name: torch.cat([p, new[name]]) for name, p in params.items()}
    adam = append_rows(adam, len(wanting))
    for moments in (adam.first, adam.second):
        for moment in moments.values():
            moment[split] = 0
    finite = torch.stack([p.reshape(len(p), -1).isfinite().all(1) for p in joined.values()]).all(0)
    sound = finite & (joined["opacity_logits"].sigmoid() > DEAD)
    sound &= joined["log_scales"].exp().amax(1) < options.too_large * width
    rows = sound.nonzero()[:, 0]
    if not len(rows):
        return Grown(joined, adam, split, len(wanting))
    joined = {name: p[rows].contiguous() for name, p in joined.items()}
    return Grown(joined, keep_rows(adam, rows), split, len(wanting))


def reset_opacity(params: Params, adam: AdamState) -> None:
    """Bring every opacity down to at most 0.01, so that only what the pictures need comes back."""
    params["opacity_logits"].clamp_(max=math.log(RESET / (1 - RESET)))
    for moments in (adam.first, adam.second):
        moments["opacity_logits"].zero_()


def _scatter(new: Params, start: int, generator: torch.Generator) -> None:
    """Draw the rows from `start` on anew within their own shape, and shrink them."""
    rows = torch.arange(start, len(new["means"]), device=new["means"].device)
    _scatter_in_place(new, rows, generator)


def _scatter_in_place(params: Params, rows: Tensor, generator: torch.Generator) -> None:
    scales = params["log_scales"][rows].exp()
    drawn = torch.randn(len(rows), 3, generator=generator, device=scales.device) * scales
    rotation = matrix_from_quat(normalize_quat(params["quats_wxyz"][rows]))
    params["means"][rows] += (rotation @ drawn[:, :, None])[:, :, 0]
    params["log_scales"][rows] -= math.log(SHRINK)
