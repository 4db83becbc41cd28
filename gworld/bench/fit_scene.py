"""A generated scene with exact truth for the fitting bench and its tests: the tabletop, seen from an orbit."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from gworld.data.toys import tabletop_world
from gworld.geometry import transform_from_pose
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at
from gworld.scene.gaussians import Gaussians
from gworld.scene.views import View, Views, cameras_of


def tabletop_views(folder: Path, count: int, width: int, height: int, seed: int = 0, spacing: float = 0.012) -> Views:
    """Render `count` pictures of the tabletop on two rings around it into `folder`, with poses and a few true points.

    The points are a random three thousand of the scene's Gaussians, as a sparse model would hold; metric, +Z up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    world = tabletop_world(spacing)
    links = transform_from_pose(torch.tensor([link.pose for link in world.links]))
    cameras = ring_cameras(count, width, height)
    views = []
    for index in range(count):
        with torch.no_grad():
            picture = render(world.gaussians, links, cameras[index], outputs=("rgb",)).rgb
        assert picture is not None
        pixels = (picture[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        path = folder / f"{index:04d}.png"
        Image.fromarray(pixels).save(path)
        views.append(View(path.name, width, height, cameras.K[index], cameras.world_from_camera[index], image=path))
    rows = torch.randperm(len(world.gaussians), generator=torch.Generator().manual_seed(seed))[:3000]
    pose = links[world.gaussians.links[rows].long()]
    points = (pose[:, :3, :3] @ world.gaussians.means[rows][..., None])[..., 0] + pose[:, :3, 3]
    colours = (world.gaussians.sh[rows, 0] * 0.28209479 + 0.5).clamp(0, 1)
    return Views(tuple(views), points, (colours * 255).round().to(torch.uint8), metric=True)


def depth_error(gaussians: Gaussians, views: Views, spacing: float = 0.012) -> float:
    """Median difference in metres between the depth of fitted Gaussians and the table's, where both are opaque."""
    world = tabletop_world(spacing)
    links = transform_from_pose(torch.tensor([link.pose for link in world.links]))
    cameras, errors = cameras_of(views), []
    with torch.no_grad():
        for index in range(len(cameras)):
            drawn = render(gaussians, None, cameras[index], outputs=("depth", "alpha"))
            true = render(world.gaussians, links, cameras[index], outputs=("depth", "alpha"))
            assert drawn.depth is not None and true.depth is not None
            assert drawn.alpha is not None and true.alpha is not None
            errors.append((drawn.depth - true.depth)[(drawn.alpha > 0.5) & (true.alpha > 0.95)].abs())
    return float(torch.cat(errors).median())


def ring_cameras(count: int, width: int, height: int) -> Cameras:
    """Cameras in front of the table on two arcs of different height, all looking at its middle."""
    share = torch.linspace(0, 1, count)
    angle = (share - 0.5) * 4.2
    raised = torch.arange(count) % 2
    radius = 1.9 - 0.3 * raised
    eyes = torch.stack([radius * angle.sin(), -radius * angle.cos(), 1.25 + 0.6 * raised], dim=1)
    target = torch.tensor([0.0, 0.05, 0.8]).expand_as(eyes)
    K = intrinsics(width, height, 0.8)
    return Cameras(K.expand(count, 3, 3).clone(), look_at(eyes, target), width, height)
