"""Scenes and cameras that the render bench draws: the garden's points, a table with half a million Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gworld.data.toys import tabletop_world
from gworld.errors import InputError
from gworld.geometry import invert_transform
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.gaussians import Gaussians
from gworld.scene.harmonics import sh_from_rgb


@dataclass(frozen=True)
class Scene:
    """What is drawn: Gaussians, their link poses [1,L,4,4] and a camera."""

    name: str
    gaussians: Gaussians
    poses: torch.Tensor
    cameras: Cameras


def garden(path: Path, seed: int, degree: int = 3) -> Scene:
    """The garden's points within [-2, 2]^3 with random shapes, as gsplat's profiling does.

    The file holds points, colours and cameras only; scales are uniform in 0..0.02, opacities in 0..1, rotations random.
    SH above degree 0 is small noise, so that its cost is measured. Raises `InputError` for another file.
    """
    try:
        with np.load(path) as data:
            means, colors = data["means3d"], data["colors"]
            viewmats, intrinsics = data["viewmats"], data["Ks"]
            height, width = int(data["height"]), int(data["width"])
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"`{path}` is not the garden's npz file: {error}.") from error
    inside = (np.abs(means) <= 2).all(axis=1)
    rng = torch.Generator().manual_seed(seed)
    count = int(inside.sum())
    sh = torch.randn(count, (degree + 1) ** 2, 3, generator=rng) * 0.02
    sh[:, 0] = sh_from_rgb(torch.from_numpy(colors[inside]).float() / 255)
    opacity = torch.rand(count, generator=rng).clamp(1e-4, 1 - 1e-4)
    gaussians = Gaussians(
        means=torch.from_numpy(means[inside]),
        quats_wxyz=torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=-1),
        log_scales=(torch.rand(count, 3, generator=rng) * 0.02).clamp_min(1e-6).log(),
        opacity_logits=torch.logit(opacity),
        sh=sh,
        links=torch.zeros(count, dtype=torch.int32),
    )
    poses = invert_transform(torch.from_numpy(viewmats).double()).float()
    cameras = Cameras(torch.from_numpy(intrinsics), poses, width, height)
    return Scene("garden", gaussians, torch.eye(4)[None, None], resize_cameras(cameras, 648, 420))


def table(spacing: float) -> Scene:
    """The generated two-robot table, seen by its front camera at 640x480; 0.004 m gives half a million Gaussians."""
    world = tabletop_world(spacing)
    assert world.cameras is not None
    return Scene("table", world.gaussians, world.rest_poses()[None], world.cameras[0])
