"""Views: posed images for fitting, as files or tensors, with optional masks, depth and time stamps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.errors import InputError
from gworld.scene.cameras import CameraModel, Cameras


@dataclass(frozen=True)
class View:
    """One posed image: where it is, how it was taken.

    K [3,3] pixels; world_from_camera [4,4], OpenCV axes; distortion as `CameraModel` orders it (removed at capture);
    time in seconds; mask and depth files beside the image where there are any.
    """

    name: str
    width: int
    height: int
    K: Float[Tensor, "3 3"]
    world_from_camera: Float[Tensor, "4 4"]
    model: CameraModel = "pinhole"
    distortion: tuple[float, ...] = ()
    image: Path | None = None
    mask: Path | None = None
    depth: Path | None = None
    time: float | None = None
    camera_id: int = 0
    source_model: str = ""
    """The camera model's name in the file it was read from, so that a round trip keeps it."""
    source_params: tuple[float, ...] = ()


@dataclass(frozen=True)
class Views:
    """Posed images of one scene with the sparse points they were posed by.

    points [P,3] metres or the capture's unit, colors [P,3] uint8; `metric` is True where lengths are metres;
    `depth_scale` turns stored depth units into lengths.
    """

    views: tuple[View, ...]
    points: Float[Tensor, "P 3"] = field(default_factory=lambda: torch.zeros(0, 3))
    colors: UInt8[Tensor, "P 3"] = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.uint8))
    metric: bool = False
    depth_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.views)


def cameras_of(views: Views) -> Cameras:
    """All views as one batch of cameras; raises `InputError` when their sizes or models differ."""
    kinds = {(view.width, view.height, view.model) for view in views.views}
    if len(kinds) != 1:
        raise InputError(f"the views have {len(kinds)} different sizes or camera models; one is needed for a batch.")
    width, height, model = kinds.pop()
    distortion = None
    if model != "pinhole":
        rows = [tuple(view.distortion) + (0.0,) * (8 - len(view.distortion)) for view in views.views]
        distortion = torch.tensor(rows, dtype=torch.float32)
    return Cameras(
        K=torch.stack([view.K for view in views.views]),
        world_from_camera=torch.stack([view.world_from_camera for view in views.views]),
        width=width,
        height=height,
        model=model,
        distortion=distortion,
        names=tuple(view.name for view in views.views),
    )
