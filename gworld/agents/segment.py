"""Which Gaussians of a reconstructed scene belong to one object: by a box, or by masks in several views.

Further ways: `segment_model` (a model that stands in the scene) and `segment_motion` (what moves as one).
"""

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
class Hole:
    """A connected patch of a picture that shows nothing any more once something has gone: the camera's number, its
    pixels and share of the picture, its middle [2] in pixels, about how large it was where the thing stood (m^2), and
    that place [3] in the world."""

    camera: int
    pixels: int
    share: float
    middle: tuple[float, float]
    area: float
    place: tuple[float, float, float]


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
    return _gone(world, rows, cameras, backend)[0].float().mean(dim=(-1, -2))


def find_holes(
    world: World, rows: Bool[Tensor, " N"], cameras: Cameras, *, least: int = 9, backend: str = "auto"
) -> tuple[Hole, ...]:
    """The holes of at least `least` pixels that `rows` leave behind in the cameras' pictures, largest first.

    Size and place are those of the surface that went, as seen from there; what to fill lies behind it.
    """
    from scipy.ndimage import find_objects, label

    gone, depth = _gone(world, rows, cameras, backend)
    holes = []
    for camera in range(len(cameras)):
        patches, _ = label(gone[camera].numpy())
        K, pose = cameras.K[camera].double(), cameras.world_from_camera[camera].double()
        for number, box in enumerate(find_objects(patches), 1):
            inside = torch.from_numpy(patches[box] == number).nonzero()
            if len(inside) < least:
                continue
            row, column = inside[:, 0] + box[0].start, inside[:, 1] + box[1].start
            far = depth[camera, row, column].double()
            ray = torch.stack([column + 0.5 - K[0, 2], row + 0.5 - K[1, 2], torch.ones(len(row))], 1)
            points = ray / torch.stack([K[0, 0], K[1, 1], K.new_tensor(1.0)]) * far[:, None]
            place = (points @ pose[:3, :3].T + pose[:3, 3]).median(0).values
            holes.append(
                Hole(
                    camera,
                    len(row),
                    len(row) / (cameras.width * cameras.height),
                    (float(column.double().mean()) + 0.5, float(row.double().mean()) + 0.5),
                    float((far.square() / (K[0, 0] * K[1, 1])).sum()),
                    (float(place[0]), float(place[1]), float(place[2])),
                )
            )
    return tuple(sorted(holes, key=lambda hole: -hole.pixels))


def _gone(
    world: World, rows: Bool[Tensor, " N"], cameras: Cameras, backend: str
) -> tuple[Bool[Tensor, "C H W"], Float[Tensor, "C H W"]]:
    """The pixels that show nothing any more without `rows`, and the depths of what they showed; a camera at a time."""
    rest, poses = select_gaussians(world.gaussians, ~rows), world.rest_poses()
    gone, depth = [], []
    for index in range(len(cameras)):
        camera = replace(cameras[index], names=())
        with torch.no_grad():
            before = render(world.gaussians, poses, camera, outputs=("alpha", "depth"), backend=backend)
            after = render(rest, poses, camera, outputs=("alpha",), backend=backend).alpha
        if before.alpha is None or before.depth is None or after is None:
            raise InputError("the renderer gave no opacity.")
        gone.append(((before.alpha[0, 0] >= 0.5) & (after[0, 0] < 0.5)).cpu())
        depth.append(before.depth[0, 0].cpu())
    return torch.stack(gone), torch.stack(depth)
