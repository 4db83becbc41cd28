"""Footage as tracking reads it: whole films of standing cameras, pictures of one instant at several sizes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from gworld.errors import InputError
from gworld.scene.cameras import Cameras, resize_cameras

SHADE, GLARE = 0.45, 1.12
"""A plate seen darker than this share of itself, or brighter, is no shadow and no light on it but something else."""
TELLING = 0.09
"""Distance from the plate (colours 0..1) at which a pixel is as likely to show something else."""


@dataclass(frozen=True, eq=False)
class Film:
    """One camera's footage: times [F] in seconds, increasing, and pictures [F,H,W,3] uint8 (a memory map will do)."""

    times: Float[ndarray, " F"]
    pictures: ndarray

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[3] != 3 or self.pictures.dtype != np.uint8:
            raise InputError(f"a film has shape {list(self.pictures.shape)}; [F,H,W,3] uint8 is needed.")
        if len(self.times) != len(self.pictures) or not len(self.times):
            raise InputError(f"a film has {len(self.pictures)} pictures and {len(self.times)} times; one each is needed.")
        if not bool(np.isfinite(self.times).all()) or bool((np.diff(self.times) <= 0).any()):
            raise InputError("the times of a film do not increase; sort or repair its clock.")

    def nearest(self, time: float) -> int:
        """The number of the picture nearest in time."""
        late = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1)) if len(self.times) > 1 else 0
        return late - 1 if late and time - self.times[late - 1] < self.times[late] - time else late


@dataclass(frozen=True, eq=False)
class Plates:
    """What the cameras see where nothing that is tracked stands: pictures [C,H,W,3] in 0..1; `known` [C,H,W] where it
    was seen at least once; `shield` [C,H,W] depth of the static scene in metres (infinite where there is none)."""

    pictures: Float[ndarray, "C H W 3"]
    known: ndarray
    shield: Float[ndarray, "C H W"] | None = None


@dataclass(frozen=True, eq=False)
class Level:
    """Cameras and plates at 1 / `shrink` of the pictures' size."""

    shrink: int
    cameras: Cameras
    plates: Float[Tensor, "C H W 3"]
    known: Float[Tensor, "C H W"]
    shield: Float[Tensor, "C H W"] | None

    @cached_property
    def eyes(self) -> Float[Tensor, "C 4 4"]:
        """`camera_from_world` in float64."""
        return torch.linalg.inv(self.cameras.world_from_camera.double())


@dataclass(frozen=True, eq=False)
class Shot:
    """One instant at one size: pictures [C,H,W,3], how surely each pixel shows something else than the plate [C,H,W],
    how far each camera's picture lies from the instant in seconds [C]."""

    rgb: Float[Tensor, "C H W 3"]
    other: Float[Tensor, "C H W"]
    late: Float[Tensor, " C"]


def levels_of(cameras: Cameras, plates: Plates, shrinks: tuple[int, ...]) -> dict[int, Level]:
    """The cameras' levels, by how much they are shrunk."""
    levels = {}
    for shrink in shrinks:
        width, height = _size(cameras, shrink)
        shield = None if plates.shield is None else np.stack([_nearest(s, width, height) for s in plates.shield])
        levels[shrink] = Level(
            shrink,
            resize_cameras(cameras, width, height),
            torch.from_numpy(np.stack([_smaller(picture, width, height) for picture in plates.pictures])),
            torch.from_numpy(np.stack([_smaller(k.astype(np.float32), width, height) for k in plates.known])),
            None if shield is None else torch.from_numpy(shield),
        )
    return levels


def shot_at(films: list[Film], time: float, level: Level) -> Shot:
    """The pictures nearest to an instant, at a level's size."""
    rows = [film.nearest(time) for film in films]
    width, height = level.cameras.width, level.cameras.height
    pictures = [
        _smaller(film.pictures[row].astype(np.float32) / 255, width, height)
        for film, row in zip(films, rows, strict=True)
    ]
    late = [film.times[row] - time for film, row in zip(films, rows, strict=True)]
    rgb = torch.from_numpy(np.stack(pictures))
    return Shot(rgb, otherness(rgb, level.plates), torch.tensor(late, dtype=torch.float64))


def otherness(rgb: Float[Tensor, "*B H W 3"], plate: Float[Tensor, "*#B H W 3"]) -> Float[Tensor, "*B H W"]:
    """How surely a pixel shows something else than the plate in more or less light, 0 to 1."""
    light = ((rgb * plate).sum(-1) / (plate * plate).sum(-1).clamp_min(1e-4)).clamp(SHADE, GLARE)
    distance = (rgb - light[..., None] * plate).square().sum(-1)
    return distance / (distance + TELLING**2)


def first_plates(films: list[Film], samples: int = 60) -> Plates:
    """What each pixel shows most of the time: a first guess, ghosts of what moves included."""
    pictures = []
    for film in films:
        rows = np.unique(np.linspace(0, len(film.times) - 1, samples).round().astype(int))
        pictures.append(np.median(film.pictures[rows], axis=0).astype(np.float32) / 255)
    stack = np.stack(pictures)
    return Plates(stack, np.ones(stack.shape[:3], bool))


def _size(cameras: Cameras, shrink: int) -> tuple[int, int]:
    return max(1, round(cameras.width / shrink)), max(1, round(cameras.height / shrink))


def _smaller(picture: ndarray, width: int, height: int) -> ndarray:
    import cv2

    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _nearest(picture: ndarray, width: int, height: int) -> ndarray:
    import cv2

    return cv2.resize(picture.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
