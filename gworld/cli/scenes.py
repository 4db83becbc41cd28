"""Opening anything as a scene that can be looked at: a world with its up-axis known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.formats.axes import to_axes
from gworld.formats.convert import gaussians_from_table
from gworld.formats.registry import detect_format, read_table, world_folder
from gworld.formats.table import Axes
from gworld.formats.world import load_world
from gworld.geometry import transform_points
from gworld.render.api import RenderOptions, RenderOutput
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import gaussians_to
from gworld.scene.world import World


def load_scene(path: str | Path, axes: Axes | None = None, *, upright: bool = True) -> World:
    """Any splat file or world as a `World`; `upright` turns files of y-down habit to +Z up, for looking at them.

    `axes` says how the file's numbers are meant where the file does not.
    """
    if detect_format(path) == "world":
        return load_world(world_folder(path))
    table = read_table(path, axes=axes)
    if upright:
        table = to_axes(table, "RFU")
    return World(gaussians_from_table(table), table.link_table, (), metric=table.metric)


def place_world(world: World, backend: str) -> World:
    """The world with its Gaussians on the GPU where there is one and `backend` may use it."""
    if backend in ("auto", "native-cuda", "gsplat") and torch.cuda.is_available():
        return replace(world, gaussians=gaussians_to(world.gaussians, device="cuda"))
    return world


def world_means(world: World, world_from_link: Float[Tensor, "L 4 4"]) -> Float[Tensor, "N 3"]:
    """Centres of all Gaussians in the world with the links at the given poses."""
    means, links = world.gaussians.means, world.gaussians.links.long()
    moved = transform_points(world_from_link.to(means)[links], means[:, None])
    return moved[:, 0]


def render_frames(
    world: World,
    poses: Float[Tensor, "T L 4 4"],
    cameras: Cameras,
    outputs: tuple[str, ...],
    options: RenderOptions,
    backend: str,
) -> Iterator[RenderOutput]:
    """One picture per frame: frame t has the links at `poses[t]` seen by camera t (of one each, all frames use it)."""
    device = world.gaussians.device
    poses = poses.to(device)
    cameras = replace(cameras, K=cameras.K.to(device), world_from_camera=cameras.world_from_camera.to(device))
    previous = None
    for frame in range(max(len(poses), len(cameras))):
        pose = poses[min(frame, len(poses) - 1)][None]
        camera = cameras[min(frame, len(cameras) - 1)]
        with torch.no_grad():
            yield render(
                world.gaussians,
                pose,
                camera,
                outputs=outputs,
                previous=previous or (pose, camera),
                options=options,
                backend=backend,
            )
        previous = (pose, camera)
