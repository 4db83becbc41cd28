"""Cameras: OpenCV axes (x right, y down, z forward), intrinsics in pixels, pixel centres at +0.5."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import InputError
from gworld.geometry import invert_transform, transform_from

CameraModel = Literal["pinhole", "opencv", "fisheye", "equirectangular"]
"""`pinhole` has no distortion; `opencv` k1 k2 p1 p2 k3 k4 k5 k6; `fisheye` (OpenCV) k1 k2 k3 k4; 360 degrees last."""


@dataclass(frozen=True)
class Cameras:
    """C cameras of one image size.

    K [C,3,3] pixels; world_from_camera [C,4,4]; distortion [C,8] or None, of `model`, removed when footage is captured;
    names one per camera; links the link each camera is mounted on (0 = fixed in the world), then `world_from_camera`
    is read as link_from_camera.
    """

    K: Float[Tensor, "C 3 3"]
    world_from_camera: Float[Tensor, "C 4 4"]
    width: int
    height: int
    model: CameraModel = "pinhole"
    distortion: Float[Tensor, "C 8"] | None = None
    names: tuple[str, ...] = ()
    links: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.K)
        if tuple(self.K.shape) != (count, 3, 3) or tuple(self.world_from_camera.shape) != (count, 4, 4):
            raise InputError(
                f"Cameras.K has shape {list(self.K.shape)} and world_from_camera {list(self.world_from_camera.shape)}; "
                "[C,3,3] and [C,4,4] are needed."
            )
        if self.width < 1 or self.height < 1:
            raise InputError(f"Cameras have a size of {self.width} x {self.height}; at least 1 x 1 is needed.")
        for name in ("names", "links"):
            if getattr(self, name) and len(getattr(self, name)) != count:
                raise InputError(f"Cameras.{name} has {len(getattr(self, name))} entries; {count} are needed.")

    def __len__(self) -> int:
        return len(self.K)

    def __getitem__(self, index: int | slice) -> Cameras:
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return replace(
            self,
            K=self.K[rows],
            world_from_camera=self.world_from_camera[rows],
            distortion=None if self.distortion is None else self.distortion[rows],
            names=self.names[rows],
            links=self.links[rows],
        )


def look_at(
    eye: Float[Tensor, "*B 3"], target: Float[Tensor, "*#B 3"], up: Float[Tensor, " 3"] | None = None
) -> Float[Tensor, "*B 4 4"]:
    """`world_from_camera` of cameras at `eye` that look at `target`, with `up` (default +Z) upward in the image."""
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = eye.new_tensor([0.0, 0.0, 1.0]) if up is None else up
    right = torch.linalg.cross(forward, up.expand_as(forward))
    fallback = torch.linalg.cross(forward, eye.new_tensor([0.0, 1.0, 0.0]).expand_as(forward))
    right = torch.where(right.norm(dim=-1, keepdim=True) < 1e-6, fallback, right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    return transform_from(torch.stack([right, down, forward], dim=-1), eye)


def intrinsics(width: int, height: int, fov_y: float) -> Float[Tensor, "3 3"]:
    """K of a pinhole camera with square pixels and vertical field of view `fov_y` in radians."""
    focal = 0.5 * height / float(torch.tan(torch.tensor(fov_y / 2, dtype=torch.float64)))
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)


def resize_cameras(cameras: Cameras, width: int, height: int) -> Cameras:
    """The same views at another image size; K is scaled so that pixel centres stay at +0.5."""
    scale = torch.tensor([width / cameras.width, height / cameras.height, 1.0], dtype=cameras.K.dtype)
    return replace(cameras, K=cameras.K * scale[:, None].to(cameras.K.device), width=width, height=height)


def project_points(
    cameras: Cameras, points: Float[Tensor, "N 3"]
) -> tuple[Float[Tensor, "C N 2"], Float[Tensor, "C N"]]:
    """Pixel positions and depths (metres along z) of world points in each pinhole camera."""
    camera_from_world = invert_transform(cameras.world_from_camera)
    local = points @ camera_from_world[:, :3, :3].transpose(-1, -2) + camera_from_world[:, None, :3, 3]
    image = local @ cameras.K.transpose(-1, -2)
    return image[..., :2] / image[..., 2:], local[..., 2]
