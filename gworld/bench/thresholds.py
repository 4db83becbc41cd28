"""Where two right renderers may differ: pixels with a pair of pixel and Gaussian that rounding carries over a limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gworld.bench.rows import Row, at_most
from gworld.bench.splats import Scene
from gworld.render.api import MAX_ALPHA, MIN_ALPHA, MIN_TRANSMITTANCE, RenderOptions
from gworld.render.projection import camera_from_links, half_extents, project_visible
from gworld.scene.gaussians import gaussians_to

NEAR = 1e-5


def agreement_rows(name: str, found: Tensor, truth: Tensor, scene: Scene) -> Iterator[Row]:
    """Largest colour difference of pictures `[1,C,H,W,3]` where no pair is near a limit, and per pair where some are.

    Near: an alpha within 1e-5 of 1/255, or a transmittance within 1e-5 of 1e-4, in double precision.
    """
    pairs = torch.stack([near_pairs(scene, camera) for camera in range(len(scene.cameras))])
    difference = (found.cpu() - truth.cpu()).abs().amax(-1)[0]
    clear = difference[pairs == 0]
    yield at_most(f"{name}, largest difference from reference", float(clear.max()) if len(clear) else 0.0, "", 1e-4)
    edge = pairs > 0
    if bool(edge.any()):
        excess = float((difference[edge] / pairs[edge]).max())
        note = f"{int(edge.sum())} of {edge.numel()} pixels, {int(pairs.sum())} pairs"
        yield at_most(f"{name}, difference per pair at a threshold", excess, "", 1 / 255, note=note)


def near_pairs(scene: Scene, camera: int) -> Int[Tensor, "H V"]:
    """How many Gaussians stand near a limit in each pixel of one camera."""
    gaussians = gaussians_to(scene.gaussians, dtype=torch.float64)
    view = scene.cameras
    poses = camera_from_links(scene.poses.double(), view.world_from_camera.double())
    # Raised a little, so that a Gaussian just too faint to be drawn is among them; its true opacity counts below.
    raised = replace(gaussians, opacity_logits=gaussians.opacity_logits + 0.005)
    kept, splats = project_visible(raised, poses[0, camera], view, camera, RenderOptions())
    opacities = gaussians.opacity_logits[kept].sigmoid()
    reach = half_extents(splats)[:, 1] + 1.0  # a pixel more, for pairs just below the limit
    columns = torch.arange(view.width, dtype=torch.float64) + 0.5
    counts = []
    for row in range(view.height):
        some = ((splats.centres[:, 1] - row - 0.5).abs() <= reach).nonzero()[:, 0]
        pixels = torch.stack([columns, torch.full_like(columns, row + 0.5)], -1)
        covariances, determinants = splats.covariances[some], splats.determinants[some]
        counts.append(_count(_alphas(splats.centres[some], covariances, determinants, opacities[some], pixels)))
    return torch.stack(counts)


def _count(alpha: Float[Tensor, "P V"]) -> Int[Tensor, " P"]:
    """How many of the layers that a pixel reaches stand near a limit."""
    drawn = alpha >= MIN_ALPHA
    behind = torch.cumprod(1 - torch.where(drawn, alpha, 0.0), dim=1)
    before = torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], dim=1)
    close = ((alpha - MIN_ALPHA).abs() <= NEAR) | (drawn & ((behind - MIN_TRANSMITTANCE).abs() <= NEAR))
    return (close & (before > MIN_TRANSMITTANCE - NEAR)).sum(1)


def _alphas(
    centres: Float[Tensor, "V 2"],
    covariances: Float[Tensor, "V 3"],
    determinants: Float[Tensor, " V"],
    opacities: Float[Tensor, " V"],
    pixels: Float[Tensor, "P 2"],
) -> Float[Tensor, "P V"]:
    xx, xy, _ = covariances.unbind(-1)
    dx, dy = (pixels[:, None] - centres[None]).unbind(-1)
    distance_sq = dx**2 / xx + (dy - xy / xx * dx) ** 2 * (xx / determinants)
    return (opacities * torch.exp(-0.5 * distance_sq)).clamp_max(MAX_ALPHA)
