"""A generated room filmed along an arc: textured boxes, ray-traced, with exact depth, masks and camera poses.

The pictures are what structure from motion has to live with (moving actors, bland walls, sensor noise, a camera that
stands or only turns), the truth is exact. World: metres, +Z up, the floor at z = 0, the room's centre at x = y = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from gworld.data.room_paint import Paint, Side, color_at, paint_sides
from gworld.errors import InputError
from gworld.scene.cameras import look_at

CLEAR = 0.05  # metres: what is nearer to the camera than this is not drawn
SIZE, HEIGHT = 6.4, 3.0  # of the room
DISTANCE = 2.3  # of the camera from the room's middle
SUPERSAMPLING = 2


@dataclass(frozen=True)
class RoomOptions:
    """What is filmed: lengths in metres, angles in radians."""

    frames: int = 60
    """How many pictures are taken."""
    width: int = 320
    """Pixels per row."""
    height: int = 240
    """Pixels per column."""
    path: Literal["arc", "still", "turn"] = "arc"
    """How the camera moves: along an arc, not at all, or turning about its own centre."""
    length: float = 6.0
    """Length of the arc."""
    moving: float = 0.0
    """Share of all pixels that show moving boxes."""
    contrast: float = 1.0
    """Contrast of every texture; 0.06 is bland."""
    noise: float = 0.0
    """Standard deviation of the sensor's noise, in levels of 255."""
    radial: float = 0.0
    """First radial term of the lens distortion (COLMAP's SIMPLE_RADIAL)."""
    seed: int = 0
    """Room, furniture, lens and path are drawn from it."""


@dataclass(frozen=True)
class Room:
    """Pictures with their truth: depth is z in metres, `moving` marks actors, K holds for all pictures."""

    pictures: UInt8[ndarray, "T H W 3"]
    depth: Float[ndarray, "T H W"]
    moving: Bool[ndarray, "T H W"]
    world_from_camera: Float[ndarray, "T 4 4"]
    K: Float[ndarray, "3 3"]
    radial: float = 0.0
    fps: float = 10.0


@dataclass(frozen=True)
class _Box:
    """A box in the world: half sizes [3], rotation [3,3] and centre [3]; the room itself is seen from `inside`."""

    half: ndarray
    rotation: ndarray
    centre: ndarray
    inside: bool = False
    moves: bool = False


@dataclass(frozen=True)
class _Rays:
    """Directions [3,H,W] float32 with z = 1 in camera axes; (least, most) y of each row [2,H] and x of each column."""

    directions: ndarray
    rows: ndarray
    columns: ndarray


def film_room(options: RoomOptions = RoomOptions()) -> Room:
    """Draw a room by its seed and film it; the same options give the same bytes.

    Raises `InputError` for sizes or shares that cannot be had.
    """
    _check(options)
    random = np.random.default_rng([options.seed, 1])
    statics, actors = _furniture(random), _actors(random)
    K = _lens(options, random)
    world_from_camera = _path(options, random)
    size = _actor_size(options, actors, K, world_from_camera) if options.moving else 0.0
    actors = [replace(actor, half=actor.half * size) for actor in actors] if size else []
    boxes = [*statics, *actors]
    paint = paint_sides([side for box in boxes for side in _sides(box)], np.random.default_rng([options.seed, 2]))
    rays = _rays(K, options, 1), _rays(K, options, SUPERSAMPLING)
    shots = []
    for index, pose in enumerate(world_from_camera):
        placed = [*statics, *_place(actors, _phase(index, options))]
        shots.append(_shoot(placed, paint, rays, pose))
    pictures, depth, moving = (np.stack(parts) for parts in zip(*shots, strict=True))
    grain = np.random.default_rng([options.seed, 3])
    pictures = np.stack([_develop(picture, options, grain) for picture in pictures])
    return Room(pictures, depth, moving, world_from_camera, K, options.radial)


def _check(options: RoomOptions) -> None:
    given = {"frames": options.frames, "width": options.width, "height": options.height}
    for name, value in given.items():
        if not 1 <= value <= 4096:
            raise InputError(f"a room with {name} {value} was asked for; 1 to 4096 is needed.")
    if not 0 <= options.moving <= 0.7:
        raise InputError(f"moving boxes on {options.moving:g} of all pixels were asked for; 0 to 0.7 can be had.")
    if not -0.3 <= options.radial <= 0.3:
        raise InputError(f"a radial distortion of {options.radial:g} was asked for; -0.3 to 0.3 can be had.")


def _furniture(random: np.random.Generator) -> list[_Box]:
    """The room, boxes along its walls and a few low ones in its middle."""
    shell = np.array([SIZE / 2, SIZE / 2, HEIGHT / 2])
    boxes = [_Box(shell, np.eye(3), np.array([0, 0, HEIGHT / 2]), inside=True)]
    for index in range(14):
        angle = 2 * math.pi * (index + random.uniform(-0.3, 0.3)) / 14
        half = random.uniform((0.12, 0.12, 0.15), (0.35, 0.35, 0.85))
        centre = np.array([2.75 * math.cos(angle), 2.75 * math.sin(angle), half[2]])
        boxes.append(_Box(half, _yaw(random.uniform(0, math.pi)), centre))
    for index in range(6):
        angle = 2 * math.pi * (index + random.uniform(-0.3, 0.3)) / 6
        half = random.uniform((0.1, 0.1, 0.08), (0.28, 0.28, 0.3))
        reach = random.uniform(0.2, 1.1)
        centre = np.array([reach * math.cos(angle), reach * math.sin(angle), half[2]])
        boxes.append(_Box(half, _yaw(random.uniform(0, math.pi)), centre))
    return boxes


def _actors(random: np.random.Generator) -> list[_Box]:
    """Three boxes of about unit size that hang over the middle of the room."""
    boxes = []
    for index in range(3):
        angle = 2 * math.pi * (index + random.uniform(-0.15, 0.15)) / 3
        half = random.uniform((0.35, 0.35, 0.4), (0.5, 0.5, 0.6))
        centre = np.array([0.55 * math.cos(angle), 0.55 * math.sin(angle), random.uniform(1.1, 1.5)])
        boxes.append(_Box(half, _yaw(random.uniform(0, math.pi)), centre, moves=True))
    return boxes


def _place(actors: list[_Box], phase: float) -> list[_Box]:
    """The actors at a phase 0..1 of the film: they go round the middle together, and each turns and bobs."""
    placed = []
    for index, actor in enumerate(actors):
        turn = _yaw(0.9 * phase)
        own = _yaw(0.5 * math.sin(2 * math.pi * phase + 2.1 * index))
        bob = np.array([0.0, 0.0, 0.15 * math.sin(2 * math.pi * (1.5 * phase + 0.37 * index))])
        placed.append(replace(actor, rotation=turn @ own @ actor.rotation, centre=turn @ actor.centre + bob))
    return placed


def _phase(index: int, options: RoomOptions) -> float:
    return index / max(1, options.frames - 1)


def _actor_size(options: RoomOptions, actors: list[_Box], K: ndarray, world_from_camera: ndarray) -> float:
    """The factor on the actors' sizes at which they cover the share that was asked for, by bisection on thumbnails."""
    scale = 64 / options.width
    small = replace(options, width=64, height=max(1, round(options.height * scale)))
    thumbnail = K * np.array([[scale], [scale], [1.0]])
    rows = sorted({round(row) for row in np.linspace(0, options.frames - 1, 10)})
    low, high = 0.02, 2.4
    for _ in range(14):
        size = (low + high) / 2
        grown = [replace(actor, half=actor.half * size) for actor in actors]
        seen = [
            _trace(_place(grown, _phase(row, options)), _rays(thumbnail, small, 1), world_from_camera[row])[0] < np.inf
            for row in rows
        ]
        low, high = (size, high) if np.mean(seen) < options.moving else (low, size)
    return (low + high) / 2


def _lens(options: RoomOptions, random: np.random.Generator) -> ndarray:
    focal = random.uniform(0.85, 1.05) * options.width
    return np.array([[focal, 0, options.width / 2], [0, focal, options.height / 2], [0, 0, 1]])


def _path(options: RoomOptions, random: np.random.Generator) -> ndarray:
    """world_from_camera [T,4,4] float64: round the middle with a slow swing in height and aim."""
    phase = np.linspace(0, 1, options.frames) if options.frames > 1 else np.zeros(1)
    start, swing = random.uniform(0, 2 * math.pi, 2)
    along = {"arc": phase, "still": 0 * phase, "turn": 0 * phase}[options.path]
    angle = start + options.length / DISTANCE * along
    height = 1.45 + 0.2 * np.sin(2 * math.pi * along + swing)
    eyes = np.stack([DISTANCE * np.cos(angle), DISTANCE * np.sin(angle), height], axis=1)
    sway = 0.25 * np.sin(2 * math.pi * along * 1.3 + swing)
    heading = angle + math.pi + sway + (1.2 * (phase - 0.5) if options.path == "turn" else 0)
    tilt = -0.22 + 0.06 * np.cos(2 * math.pi * along * 0.8 + swing)
    aim = np.stack([np.cos(heading), np.sin(heading), np.tan(tilt)], axis=1)
    return look_at(torch.from_numpy(eyes), torch.from_numpy(eyes + aim)).numpy()


def _rays(K: ndarray, options: RoomOptions, supersampling: int) -> _Rays:
    """Rays through the middles of sub-pixels [H*S, W*S]."""
    across = (np.arange(options.width * supersampling) + 0.5) / supersampling
    down = (np.arange(options.height * supersampling) + 0.5) / supersampling
    x, y = np.meshgrid((across - K[0, 2]) / K[0, 0], (down - K[1, 2]) / K[1, 1])
    flat_x, flat_y = x, y
    for _ in range(20 if options.radial else 0):  # invert x_distorted = x (1 + k r^2) by fixed point
        factor = 1 + options.radial * (flat_x**2 + flat_y**2)
        flat_x, flat_y = x / factor, y / factor
    directions = np.stack([flat_x, flat_y, np.ones_like(x)]).astype(np.float32)
    rows = np.stack([flat_y.min(1), flat_y.max(1)])
    return _Rays(directions, rows, np.stack([flat_x.min(0), flat_x.max(0)]))


def _trace(boxes: list[_Box], rays: _Rays, pose: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """Nearest hits: depth z [H,W] (inf where none), side (six per box) and the hit [3,H,W] in its box's axes."""
    shape = rays.directions.shape
    depth = np.full(shape[1:], np.inf, np.float32)
    side = np.zeros(shape[1:], np.int32)
    hit = np.zeros(shape, np.float32)
    for index, box in enumerate(boxes):
        rows, columns = _window(box, rays, pose)
        part = rays.directions[:, rows, columns]
        if not part.size:
            continue
        local = (box.rotation.T @ pose[:3, :3]).astype(np.float32)
        eye = (box.rotation.T @ (pose[:3, 3] - box.centre)).astype(np.float32)[:, None, None]
        half = box.half.astype(np.float32)[:, None, None]
        directions = (local @ part.reshape(3, -1)).reshape(part.shape)
        directions[np.abs(directions) < 1e-9] = 1e-9
        reach, middle = half / np.abs(directions), -eye / directions
        enter, leave = middle - reach, middle + reach
        first = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
        last = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
        distance = last if box.inside else first
        better = (first < last) & (distance > CLEAR) & (distance < depth[rows, columns])
        chosen, found = directions[:, better], distance[better]
        axis = (leave if box.inside else enter)[:, better] == found
        axis = np.where(axis[0], 0, np.where(axis[1], 1, 2))
        forward = chosen[axis, np.arange(len(axis))] > 0
        depth[rows, columns][better] = found
        side[rows, columns][better] = 6 * index + 2 * axis + forward
        hit[:, rows, columns][:, better] = eye[:, 0] + found * chosen
    return depth, side, hit


def _window(box: _Box, rays: _Rays, pose: ndarray) -> tuple[slice, slice]:
    """Rows and columns of the rays that may meet a box, by its corners where all lie well in front."""
    whole = slice(0, rays.rows.shape[1]), slice(0, rays.columns.shape[1])
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    corners = (signs * box.half) @ box.rotation.T + box.centre
    seen = (corners - pose[:3, 3]) @ pose[:3, :3]
    if box.inside or (seen[:, 2] < CLEAR).any():
        return (slice(0, 0), slice(0, 0)) if not box.inside and (seen[:, 2] < CLEAR).all() else whole
    flat = seen[:, :2] / seen[:, 2:]
    high, low = flat.max(0), flat.min(0)
    rows = np.flatnonzero((rays.rows[1] >= low[1]) & (rays.rows[0] <= high[1]))
    columns = np.flatnonzero((rays.columns[1] >= low[0]) & (rays.columns[0] <= high[0]))
    if not len(rows) or not len(columns):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shoot(
    boxes: list[_Box], paint: Paint, rays: tuple[_Rays, _Rays], pose: ndarray
) -> tuple[ndarray, ndarray, ndarray]:
    """One picture [H,W,3] float32 0..1 from the finer rays, its depth and its moving mask from those of the pixels."""
    depth, side, _ = _trace(boxes, rays[0], pose)
    _, fine_side, hit = _trace(boxes, rays[1], pose)
    fine = len(fine_side) // len(depth)
    color = color_at(paint, fine_side, hit)
    color = np.sum([color[y::fine, x::fine] for y in range(fine) for x in range(fine)], axis=0) / fine**2
    moves = np.repeat([box.moves for box in boxes], 6)
    return color, depth, moves[side]


def _develop(picture: ndarray, options: RoomOptions, grain: np.random.Generator) -> ndarray:
    """To 8 bits: contrast about mid grey, then noise, then rounding."""
    levels = 255 * (0.5 + options.contrast * (picture - 0.5))
    if options.noise:
        levels = levels + grain.normal(0, options.noise, levels.shape)
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)


def _sides(box: _Box) -> list[Side]:
    """The six sides of a box: the axes they span and their sizes; the order `_trace` numbers them in."""
    return [
        Side(2 * float(box.half[across]), 2 * float(box.half[up]), across, up)
        for across, up in ((1, 2), (1, 2), (0, 2), (0, 2), (0, 1), (0, 1))
    ]


def _yaw(angle: float) -> ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
