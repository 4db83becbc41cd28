"""Which Gaussians of a reconstructed scene belong to one object: by a box, or by masks in several views."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.errors import InputError
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import C0
from gworld.scene.world import World


@dataclass(frozen=True)
class Shares:
    """What each Gaussian adds to the views' pictures: `inside` the masks and in all, in pixels [N]."""

    inside: Float[Tensor, " N"]
    total: Float[Tensor, " N"]


def rows_in_box(
    world: World,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    world_from_box: Tensor | None = None,
) -> Bool[Tensor, " N"]:
    """The static scene's Gaussians whose centre lies in a box from corner `low` to `high` (metres).

    The box has the world's axes, or stands at `world_from_box [4,4]`. Raises `InputError` for an empty box.
    """
    if not all(a < b for a, b in zip(low, high, strict=True)):
        raise InputError(f"the box {low} .. {high} is empty; the lower corner comes first.")
    points = world.gaussians.means
    if world_from_box is not None:
        pose = world_from_box.to(points)
        points = (points - pose[:3, 3]) @ pose[:3, :3]
    inside = ((points >= points.new_tensor(low)) & (points <= points.new_tensor(high))).all(dim=-1)
    return inside & (world.gaussians.links == 0)


def mask_shares(
    gaussians: Gaussians,
    world_from_link: Float[Tensor, "L 4 4"] | None,
    cameras: Cameras,
    masks: Bool[Tensor, "C H W"],
    *,
    backend: str = "auto",
) -> Shares:
    """How much of each Gaussian's blend weight falls inside the masks of the views.

    The weights are the gradient of the pictures by the Gaussians' colours, so they are exactly the renderer's,
    occlusion included. Raises `InputError` when masks and cameras do not fit.
    """
    if tuple(masks.shape) != (len(cameras), cameras.height, cameras.width):
        raise InputError(
            f"masks have shape {list(masks.shape)}; [{len(cameras)}, {cameras.height}, {cameras.width}] is needed."
        )
    inside, total = (gaussians.means.new_zeros(len(gaussians)) for _ in range(2))
    for view in range(len(cameras)):
        colors = torch.zeros_like(gaussians.sh[:, :1]).requires_grad_()
        painted = replace(gaussians, sh=colors)
        picture = render(painted, world_from_link, cameras[view], outputs=("rgb",), backend=backend).rgb
        if picture is None:
            raise InputError("the renderer gave no picture.")
        mask = masks[view].to(picture)
        ((picture[0, 0, ..., 0] * mask).sum() + picture[0, 0, ..., 1].sum()).backward()
        if colors.grad is not None:
            inside += colors.grad[:, 0, 0] / C0
            total += colors.grad[:, 0, 1] / C0
    return Shares(inside, total)


def rows_in_masks(world: World, shares: Shares, *, majority: float = 0.5, least: float = 0.05) -> Bool[Tensor, " N"]:
    """The static scene's Gaussians that lie mostly inside the masks.

    A Gaussian belongs when more than `majority` of its contribution to the pictures is inside; those that add less
    than `least` pixels to all views together are not judged and stay.
    """
    seen = shares.total > least
    return seen & (shares.inside > majority * shares.total) & (world.gaussians.links == 0)


def hole_shares(
    world: World, rows: Bool[Tensor, " N"], cameras: Cameras, *, backend: str = "auto"
) -> Float[Tensor, " C"]:
    """The share of each picture that shows nothing any more once `rows` have gone elsewhere: holes to be filled.

    A pixel is a hole when its opacity was one half or more and is less without them.
    """
    poses = world.rest_poses()
    with torch.no_grad():
        before = render(world.gaussians, poses, cameras, outputs=("alpha",), backend=backend).alpha
        rest = select_gaussians(world.gaussians, ~rows)
        after = render(rest, poses, cameras, outputs=("alpha",), backend=backend).alpha
    if before is None or after is None:
        raise InputError("the renderer gave no opacity.")
    return ((before[0] >= 0.5) & (after[0] < 0.5)).float().mean(dim=(-1, -2))
