"""Posed images as a fit holds them: 8-bit, at every resolution of its coarse-to-fine schedule, read once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gworld.errors import InputError
from gworld.files import check_memory, existing_file
from gworld.scene.cameras import Cameras
from gworld.scene.views import View, Views

USABLE = 250
"""A pixel made smaller counts where its mask was (nearly) full, of 255: nothing ignored bleeds into the fit."""


@dataclass(frozen=True)
class Picture:
    """One view at one resolution: `rgb` in 0..255, `mask` where it counts, `depth` along z (0 unknown), its camera."""

    rgb: UInt8[Tensor, "H V 3"]
    camera: Cameras
    mask: Tensor | None = None
    depth: Float[Tensor, "H V"] | None = None

    @property
    def truth(self) -> Float[Tensor, "H V 3"]:
        """The colours in 0..1."""
        return self.rgb.float().mul_(1 / 255)


@dataclass(frozen=True)
class Album:
    """Views at several resolutions: `levels[l][v]`, the finest first, each half the size of the one before."""

    names: tuple[str, ...]
    levels: tuple[tuple[Picture, ...], ...]

    def __len__(self) -> int:
        return len(self.names)


def read_album(views: Views, longest: int, levels: int, device: torch.device) -> Album:
    """Read the images, masks and depth of `views`, their longest side brought down to `longest` pixels by area.

    An image with an alpha channel is masked by it where the view has no mask of its own. Raises `InputError` for views
    that are not pinhole, images missing, damaged or of another shape than their camera, and `ResourceError` when they
    would not fit in memory.
    """
    sizes = [fit_size(view.width, view.height, longest) for view in views.views]
    each = 4 + 4 * any(view.depth for view in views.views)
    check_memory(int(sum(w * h for w, h in sizes) * each * 4 / 3), f"Holding {len(views)} images of the fit")
    finest = [_read(view, size, views.depth_scale, device) for view, size in zip(views.views, sizes, strict=True)]
    pyramid = [tuple(finest)]
    for _ in range(1, levels):
        pyramid.append(tuple(_halve(picture) for picture in pyramid[-1]))
    return Album(tuple(view.name for view in views.views), tuple(pyramid))


def fit_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height with the longest side at most `longest`, in proportion."""
    share = min(1.0, longest / max(width, height))
    return max(1, round(width * share)), max(1, round(height * share))


def _read(view: View, size: tuple[int, int], depth_scale: float, device: torch.device) -> Picture:
    if view.model != "pinhole" or any(view.distortion):
        raise InputError(f"the view `{view.name}` is of the model {view.model}; undistort the images first.")
    if view.image is None:
        raise InputError(f"the view `{view.name}` has no image; put it where its pose file names it.")
    image = _open(view, "image")
    if image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        alpha, image = image.getchannel("A"), image.convert("RGB")
    else:
        alpha, image = None, image.convert("RGB")
    mask = _open(view, "mask").convert("L") if view.mask is not None else alpha
    depth = None if view.depth is None else _depth(view, size, depth_scale).to(device)
    rgb = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BOX)))
    usable = None
    if mask is not None:
        usable = torch.from_numpy(np.array(mask.resize(size, Image.Resampling.BOX)) >= USABLE).to(device)
        rgb[~usable.cpu()] = 0  # SSIM's window looks across the mask's border: what is ignored must not be there at all
    return Picture(rgb.to(device), _camera(view, size, device), usable, depth)


def _open(view: View, kind: str) -> Image.Image:
    path = existing_file(getattr(view, kind))
    try:
        image = Image.open(path)
        image.load()
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"`{path}` cannot be read as a picture ({error}). Copy or export it again.") from error
    wanted, found = view.width / view.height, image.width / image.height
    if abs(wanted / found - 1) > 0.02:
        raise InputError(
            f"`{path}` has {image.width} x {image.height} pixels but its camera {view.width} x {view.height}; the same "
            "shape is needed. Export poses and pictures together."
        )
    return image


def _depth(view: View, size: tuple[int, int], scale: float) -> Tensor:
    """Depth of the nearest stored pixel: averages across an edge would lie in the air."""
    stored = np.asarray(_open(view, "depth"))
    if stored.ndim != 2:
        raise InputError(f"`{view.depth}` has {stored.ndim} dimensions; a 16-bit depth picture is needed.")
    rows = ((np.arange(size[1]) + 0.5) * stored.shape[0] / size[1]).astype(int)
    columns = ((np.arange(size[0]) + 0.5) * stored.shape[1] / size[0]).astype(int)
    return torch.from_numpy(stored[rows][:, columns].astype(np.float32) * np.float32(scale))


def _camera(view: View, size: tuple[int, int], device: torch.device) -> Cameras:
    scale = torch.tensor([size[0] / view.width, size[1] / view.height, 1.0], dtype=torch.float64)
    K = (view.K.double() * scale[:, None]).float()
    pose = view.world_from_camera.float()
    return Cameras(K[None].to(device), pose[None].to(device), *size)


def _halve(picture: Picture) -> Picture:
    """The picture at half the size, each pixel the mean of four (an odd last row or column is left out)."""
    height, width = picture.rgb.shape[0] // 2, picture.rgb.shape[1] // 2
    if min(height, width) < 16:
        return picture
    quads = picture.rgb[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    rgb = quads.float().mean(dim=(1, 3)).round().to(torch.uint8)
    mask = depth = None
    if picture.mask is not None:
        mask = picture.mask[: 2 * height, : 2 * width].reshape(height, 2, width, 2).all(3).all(1)
    if picture.depth is not None:
        depth = picture.depth[: 2 * height : 2, : 2 * width : 2].contiguous()
    K = picture.camera.K.clone()
    K[:, :2] *= 0.5
    return Picture(rgb, Cameras(K, picture.camera.world_from_camera, width, height), mask, depth)
