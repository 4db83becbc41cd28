"""A trained capture as the render bench draws it, cut finer where the file at hand has fewer Gaussians than wanted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch

from gworld.bench.splats import Scene
from gworld.errors import InputError
from gworld.formats.registry import read
from gworld.geometry import matrix_from_quat, normalize_quat
from gworld.render.paths import fit_view
from gworld.scene.gaussians import Gaussians

SHIFT = 0.9
"""Standard deviations by which the outer two of three parts stand away along the longest axis."""


def trained(path: Path) -> Scene:
    """A trained capture of others (`gaussian_files/biker.compressed.ply`), each Gaussian cut in three, seen whole.

    Three cameras alike, as many as the peer rasteriser draws. Raises `InputError` when the file holds something else.
    """
    gaussians = read(path)
    if not isinstance(gaussians, Gaussians):
        raise InputError(f"`{path}` holds no Gaussians; a trained capture is needed.")
    finer = cut_in_three(gaussians)
    camera = fit_view(gaussians.means, 648, 420)
    three = replace(
        camera,
        K=camera.K.expand(3, 3, 3).clone(),
        world_from_camera=camera.world_from_camera.expand(3, 4, 4).clone(),
    )
    return Scene("biker", finer, torch.eye(4)[None, None], three)


def cut_in_three(gaussians: Gaussians) -> Gaussians:
    """Three Gaussians along the longest axis of each: the same spread and, seen from afar, the same alpha."""
    axis = gaussians.log_scales.argmax(dim=1)
    rows = torch.arange(len(gaussians))
    longest = gaussians.log_scales[rows, axis].exp()
    along = matrix_from_quat(normalize_quat(gaussians.quats_wxyz))[rows, :, axis] * longest[:, None]
    shrink = math.sqrt(1 - SHIFT**2 * 2 / 3)
    log_scales = gaussians.log_scales.clone()
    log_scales[rows, axis] += math.log(shrink)
    opacity = torch.sigmoid(gaussians.opacity_logits) / (3 * shrink)
    return replace(
        gaussians,
        means=torch.cat([gaussians.means + step * along for step in (-SHIFT, 0.0, SHIFT)]),
        quats_wxyz=gaussians.quats_wxyz.repeat(3, 1),
        log_scales=log_scales.repeat(3, 1),
        opacity_logits=torch.logit(opacity.clamp(1e-6, 1 - 1e-6)).repeat(3),
        sh=gaussians.sh.repeat(3, 1, 1),
        links=gaussians.links.repeat(3),
    )
