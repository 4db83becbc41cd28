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

STEADY, USUAL, STILL = 0.06, 0.35, 0.9
"""Colours nearer than this to the median agree with it; the share of the time they must, to be believed; and to be
taken for what never moves."""
GREY_HUE, GREY_DARK = float(np.cos(np.radians(12.0))), 0.65
"""Cosine between colours of one kind, and the share of its brightness that a grey body keeps."""
VIVID, VIVID_HUE, VIVID_DARK, VIVID_SHARE = 0.25, float(np.cos(np.radians(25.0))), 0.4, 0.75
"""Chroma (what a colour has beside its grey) per brightness from which a body is vivid; cosine between chromas of one
hue; the share of its brightness and of its chroma that it keeps. More chroma than the model has is no hindrance."""
TELLING_SHARE = 0.08
"""The share of a scene that may have a body's colour if that is to tell it."""
RIM = 7
"""Pixels by which what has a body's colour is widened: seams, joints and blurred edges have others."""


@dataclass(frozen=True, eq=False)
class Film:
    """One camera's footage: times [F] in seconds, increasing, and pictures [F,H,W,3] uint8 (a memory map will do)."""

    times: Float[ndarray, " F"]
    pictures: ndarray

    def __post_init__(self) -> None:
        if self.pictures.ndim != 4 or self.pictures.shape[3] != 3 or self.pictures.dtype != np.uint8:
            raise InputError(f"a film has shape {list(self.pictures.shape)}; [F,H,W,3] uint8 is needed.")
        if len(self.times) != len(self.pictures) or not len(self.times):
            raise InputError(
                f"a film has {len(self.pictures)} pictures and {len(self.times)} times; one each is needed."
            )
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
    """Cameras and plates at 1 / `shrink` of the pictures' size; `gains` [C,3] are the cameras' exposures; where it is
    `sharp`, bodies are drawn no wider than they are."""

    shrink: int
    cameras: Cameras
    plates: Float[Tensor, "C H W 3"]
    known: Float[Tensor, "C H W"]
    shield: Float[Tensor, "C H W"] | None
    gains: Float[Tensor, "C 3"]
    sharp: bool = False

    @cached_property
    def eyes(self) -> Float[Tensor, "C 4 4"]:
        """`camera_from_world` in float64."""
        return torch.linalg.inv(self.cameras.world_from_camera.double())


@dataclass(frozen=True, eq=False)
class Shot:
    """One instant at one size: pictures [C,H,W,3], the plates in their light [C,H,W,3], how surely each pixel shows
    something else than the plate [C,H,W], how far each camera's picture lies from the instant in seconds [C]."""

    rgb: Float[Tensor, "C H W 3"]
    behind: Float[Tensor, "C H W 3"]
    other: Float[Tensor, "C H W"]
    late: Float[Tensor, " C"]


def levels_of(
    cameras: Cameras,
    plates: Plates,
    shrinks: tuple[int, ...],
    gains: Float[Tensor, "C 3"] | None = None,
    *,
    sharp: bool = False,
) -> dict[int, Level]:
    """The cameras' levels, by how much they are shrunk."""
    gains = torch.ones(len(cameras), 3) if gains is None else gains
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
            gains,
            sharp,
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
    behind, other = in_light(rgb, level.plates)
    return Shot(rgb, behind, other, torch.tensor(late, dtype=torch.float64))


def in_light(
    rgb: Float[Tensor, "*B H W 3"], plate: Float[Tensor, "*#B H W 3"]
) -> tuple[Float[Tensor, "*B H W 3"], Float[Tensor, "*B H W"]]:
    """The plate in the light or shadow that explains a picture best, and how surely a pixel shows something else."""
    light = ((rgb * plate).sum(-1) / (plate * plate).sum(-1).clamp_min(1e-4)).clamp(SHADE, GLARE)
    behind = light[..., None] * plate
    distance = (rgb - behind).square().sum(-1)
    return behind, distance / (distance + TELLING**2)


def first_plates(films: list[Film], colours: Float[ndarray, "B 3"], samples: int = 60) -> Plates:
    """What each pixel shows most of the time: a first guess; `known` where it is steady.

    Bodies that stand still for long would be taken for the scene. Where a pixel shows one of the bodies' `colours` at
    times and something else at others, the plate is made of the others; colours that much of the scene has tell
    nothing and are not used so.
    """
    pictures, known = [], []
    for film in films:
        rows = np.unique(np.linspace(0, len(film.times) - 1, samples).round().astype(int))
        shown = film.pictures[rows].astype(np.float32) / 255
        plate = np.median(shown, axis=0)
        # Where pixels change, the median may show a body: only what is steady tells the scene's own colours.
        still = (np.abs(shown - plate).max(-1) < STEADY).mean(0) > STILL
        telling = [colour for colour in colours if (_alike(plate, colour) & still).mean() < TELLING_SHARE]
        body = np.zeros(shown.shape[:3], bool)
        for colour in telling:
            body |= _alike(shown, colour)
        body = _widened(body)
        seldom = (~body).sum(0) < 2
        clean = np.where((body & ~seldom)[..., None], np.nan, shown)
        plate = np.nanmedian(clean, axis=0)
        with np.errstate(invalid="ignore"):
            agrees = (np.abs(clean - plate).max(-1) < STEADY).sum(0) / np.maximum((~body | seldom).sum(0), 1)
        known.append((agrees > USUAL) & ~(seldom & body.any(0)))
        pictures.append(plate.astype(np.float32))
    return Plates(np.stack(pictures), np.stack(known))


def _alike(pictures: ndarray, colour: ndarray) -> ndarray:
    """Whether pixels have a colour's hue and enough of its brightness."""
    size = np.linalg.norm(colour)
    bright = np.linalg.norm(pictures, axis=-1)
    own, seen = colour - colour.mean(), pictures - pictures.mean(-1, keepdims=True)
    chroma, vivid = np.linalg.norm(seen, axis=-1), np.linalg.norm(own)
    if vivid < VIVID * size:
        return ((pictures @ colour) > GREY_HUE * bright * size) & (bright > GREY_DARK * size)
    alike = (seen @ own) > VIVID_HUE * chroma * vivid
    return alike & (bright > VIVID_DARK * size) & (chroma * size > VIVID_SHARE * vivid * bright)


def _widened(masks: ndarray) -> ndarray:
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (RIM, RIM))
    return np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in masks])


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
