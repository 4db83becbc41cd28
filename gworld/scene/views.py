"""Views: posed images for fitting, as files, with optional masks, depth and time stamps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gworld.errors import InputError
from gworld.scene.cameras import CameraModel, Cameras

ViewModel = CameraModel | Literal["other"]
"""`other`: a camera that no `CameraModel` equals; what it is stands in `source_model` and `source_params`."""


@dataclass(frozen=True)
class View:
    """One posed image: where it is, how it was taken.

    K [3,3] pixels; world_from_camera [4,4], OpenCV axes, both float64 where they were read from a file; distortion as
    `CameraModel` orders it (removed at capture); time in seconds; image, mask and depth are files, None where there
    are none. `source_model` and `source_params` are the camera's name and parameters in the file it was read from, so
    that a round trip keeps them.
    """

    name: str
    width: int
    height: int
    K: Float[Tensor, "3 3"]
    world_from_camera: Float[Tensor, "4 4"]
    model: ViewModel = "pinhole"
    distortion: tuple[float, ...] = ()
    image: Path | None = None
    mask: Path | None = None
    depth: Path | None = None
    time: float | None = None
    camera_id: int = 0
    source_model: str = ""
    source_params: tuple[float, ...] = ()


@dataclass(frozen=True)
class Views:
    """Posed images of one scene with the sparse points they were posed by.

    points [P,3] metres or the capture's unit, float64 where read from a file; colors [P,3] uint8, or none of them;
    `metric` is True where lengths are metres; `depth_scale` turns stored depth units into lengths.
    """

    views: tuple[View, ...]
    points: Float[Tensor, "P 3"] = field(default_factory=lambda: torch.zeros(0, 3))
    colors: UInt8[Tensor, "Q 3"] = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.uint8))
    metric: bool = False
    depth_scale: float = 1.0

    def __post_init__(self) -> None:
        if len(self.colors) not in (0, len(self.points)):
            raise InputError(
                f"Views.colors has {len(self.colors)} rows; one for each of {len(self.points)} points is needed."
            )

    def __len__(self) -> int:
        return len(self.views)


def cameras_of(views: Views, dtype: torch.dtype = torch.float32) -> Cameras:
    """All views as one batch of cameras of type `dtype`.

    Raises `InputError` when there are none, when their sizes or models differ, or when a camera has no `CameraModel`.
    """
    kinds = {(view.width, view.height, view.model) for view in views.views}
    if len(kinds) != 1:
        raise InputError(f"the views have {len(kinds)} different sizes or camera models; one is needed for a batch.")
    width, height, model = kinds.pop()
    if model == "other":
        raise InputError(
            f"the views have the camera model {views.views[0].source_model}, which has no equal here. Undistort the "
            "images first."
        )
    distortion = None
    if model in ("opencv", "fisheye"):
        rows = [tuple(view.distortion) + (0.0,) * (8 - len(view.distortion)) for view in views.views]
        distortion = torch.tensor(rows, dtype=dtype)
    return Cameras(
        K=torch.stack([view.K for view in views.views]).to(dtype),
        world_from_camera=torch.stack([view.world_from_camera for view in views.views]).to(dtype),
        width=width,
        height=height,
        model=model,
        distortion=distortion,
        names=tuple(view.name for view in views.views),
    )


def split_views(views: Views, every: int = 8) -> tuple[Views, Views]:
    """Set every `every`-th view in order of name aside, from the first: (for fitting, held out).

    Source: Barron et al., Mip-NeRF 360, CVPR 2022 (every eighth). Raises `InputError` for `every` below 2.
    """
    if every < 2:
        raise InputError(f"every {every}th view was to be held out; 2 or more is needed.")
    ordered = sorted(views.views, key=lambda view: view.name)
    held_out = tuple(ordered[::every])
    fitting = tuple(view for index, view in enumerate(ordered) if index % every)
    return replace(views, views=fitting), replace(views, views=held_out)
