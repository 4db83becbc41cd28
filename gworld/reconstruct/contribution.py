"""What each camera gets of each Gaussian: its share in the pixels, exactly as the renderer blends it.

The blend weight T alpha of a Gaussian, summed over pixels, is the derivative of the summed picture by the Gaussian's
own colour. One forward and one backward pass per camera give it for all Gaussians at once, on every backend, with
occlusion, opacity and masks as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.files import existing_file
from gworld.geometry import invert_transform
from gworld.render.api import RenderOptions
from gworld.render.projection import project
from gworld.render.select import render
from gworld.scene.cameras import Cameras, resize_cameras
from gworld.scene.gaussians import Gaussians, select_gaussians
from gworld.scene.harmonics import C0
from gworld.scene.views import View, Views, cameras_of

LONGEST = 640
"""Pixels of a picture's longer side in which contributions are measured; larger cameras are scaled down."""

Masks = Callable[[int], "Tensor | None"]
"""The mask of a view by its number: `[H, W]`, weights or True where the picture counts; None where all does."""


@dataclass(frozen=True)
class Glimpse:
    """What camera `index` gets of each Gaussian.

    weights [N] are the sums of its blend weights over the pixels that count; alpha and depth [H,W] (metres) belong to
    the whole picture; camera is the one that was drawn, poses [L,4,4] are world_from_link at its time.
    """

    index: int
    camera: Cameras
    poses: Float[Tensor, "L 4 4"]
    weights: Float[Tensor, " N"]
    alpha: Float[Tensor, "H V"]
    depth: Float[Tensor, "H V"]


def glimpses(
    gaussians: Gaussians,
    cameras: Sequence[Cameras],
    *,
    masks: Masks | None = None,
    world_from_link: Tensor | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    longest: int = LONGEST,
    backend: str = "auto",
) -> Iterator[Glimpse]:
    """Look at the Gaussians through one camera after the other (see `single_cameras`); memory is that of one picture.

    world_from_link [L,4,4], or [C,L,4,4] where links stood elsewhere in each view; the identity by default. Raises
    `InputError` for cameras that are not fixed pinholes, one by one, and what else `render` refuses.
    """
    poses = poses_by_view(gaussians, world_from_link, len(cameras))
    for index, camera in enumerate(cameras):
        if len(camera) != 1 or any(camera.links):
            raise InputError("cameras fixed in the world are needed here, one at a time; take them apart first.")
        camera = shrunk(camera, longest)
        bare = replace(gaussians, sh=torch.zeros_like(gaussians.sh[:, :1]).requires_grad_())
        with torch.enable_grad():
            out = render(
                bare, poses[index], camera, outputs=("rgb", "alpha", "depth"), options=options, backend=backend
            )
            assert out.rgb is not None and out.alpha is not None and out.depth is not None
            red = out.rgb[0, 0, ..., 0]
            mask = None if masks is None else masks(index)
            counted = red if mask is None else red * fitted_mask(mask, camera)
            weights = bare.sh[:, 0, 0].detach()
            if red.requires_grad:  # not where nothing is in view
                weights = torch.autograd.grad(counted.sum(), bare.sh)[0][:, 0, 0] / C0
        yield Glimpse(index, camera, poses[index], weights, out.alpha[0, 0].detach(), out.depth[0, 0].detach())


def light_shares(gaussians: Gaussians, glimpse: Glimpse, options: RenderOptions) -> Float[Tensor, " N"]:
    """How much of each Gaussian's own light arrives in a picture: its mean transmittance, 0 hidden .. 1 in the open.

    The light it would give alone is opacity x 2 pi sqrt(det covariance2d), the integral of its projection. What lies
    outside the picture or its mask counts as not arrived.
    """
    shares = torch.zeros_like(glimpse.weights)
    rows = (glimpse.weights > 0).nonzero()[:, 0]
    if len(rows):
        some = select_gaussians(replace(gaussians, sh=gaussians.sh[:, :1]), rows)
        camera_from_link = invert_transform(glimpse.camera.world_from_camera[0]).to(glimpse.poses) @ glimpse.poses
        splats = project(some, camera_from_link.to(some.means), glimpse.camera, 0, options)
        alone = splats.opacities * (2 * math.pi) * splats.determinants.sqrt()
        shares[rows] = (glimpse.weights[rows] / alone).clamp(0, 1)
    return shares


def single_cameras(source: Cameras | Views) -> list[Cameras]:
    """The cameras of a batch, or of posed views of any sizes, one by one."""
    if isinstance(source, Cameras):
        return [source[index] for index in range(len(source))]
    return [cameras_of(Views((view,))) for view in source.views]


def view_masks(views: Views) -> Masks:
    """The masks of views as files (bright = counts), read when they are asked for."""
    return lambda index: _read_mask(views.views[index])


def shrunk(camera: Cameras, longest: int) -> Cameras:
    """The same view with at most `longest` pixels on the longer side."""
    scale = min(1.0, longest / max(camera.width, camera.height))
    width, height = max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    return camera if scale == 1.0 else resize_cameras(camera, width, height)


def fitted_mask(mask: Tensor, camera: Cameras) -> Float[Tensor, "H V"]:
    """A mask as weights of the camera's size (nearest pixels)."""
    rows = (torch.arange(camera.height) + 0.5) * (mask.shape[0] / camera.height)
    columns = (torch.arange(camera.width) + 0.5) * (mask.shape[1] / camera.width)
    return mask[rows.long()[:, None], columns.long()].float().to(camera.K.device)


def poses_by_view(gaussians: Gaussians, world_from_link: Tensor | None, count: int) -> Float[Tensor, "C L 4 4"]:
    """`world_from_link` of each of `count` views; raises `InputError` when links have no pose."""
    if world_from_link is None:
        links = int(gaussians.links.max()) + 1 if len(gaussians) else 1
        world_from_link = torch.eye(4).expand(links, 4, 4)
    poses = world_from_link.to(gaussians.means)
    poses = poses.expand(count, *poses.shape) if poses.ndim == 3 else poses
    if poses.ndim != 4 or poses.shape[0] != count or (len(gaussians) and poses.shape[1] <= int(gaussians.links.max())):
        raise InputError(
            f"world_from_link has shape {list(world_from_link.shape)}; a pose for each link, [L,4,4], is needed, or "
            f"[{count},L,4,4], one set for each view."
        )
    return poses


def _read_mask(view: View) -> Tensor | None:
    if view.mask is None:
        return None
    from PIL import Image, UnidentifiedImageError

    file = existing_file(view.mask)
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP")) as picture:
            if picture.size != (view.width, view.height):
                raise InputError(
                    f"`{file}` has {picture.size[0]} x {picture.size[1]} pixels; its view has {view.width} x "
                    f"{view.height}. Make the masks again."
                )
            values = np.asarray(picture.convert("L"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise InputError(f"`{file}` cannot be read as a mask: {error}. Make the masks again.") from error
    return torch.from_numpy(values > 127)
