"""The real push as pictures: the simulated block before the camera that took no part, beside the tracked and the last
picture, and films of it.

The robot is drawn where it was tracked: its motion is what the block's is foretold from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.bench.realpush_data import Pushing, Track, windows_of
from gworld.bench.rows import Row, at_least
from gworld.bench.track_real import Recording
from gworld.geometry import pose_from_transform
from gworld.reconstruct.motion_bodies import Bodies, Thing
from gworld.reconstruct.motion_draw import draw
from gworld.reconstruct.motion_film import Film, Level, first_plates, levels_of, shot_at
from gworld.reconstruct.motion_paint import clean_plates, link_colours, paint
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import select_gaussians
from gworld.scene.harmonics import sh_from_rgb
from gworld.scene.world import World

if TYPE_CHECKING:
    from gworld.bench.realpush import Learned, Predict

CHANGED = 0.06
"""Difference from the first picture, of 1, at which something moved in a pixel."""
EVERY, PAINTED, CLEANED = 6, 14, 60
"""Every how many starts are judged; instants that colours are learned from, and plates."""
STILL = 1e-3
"""How far (m) a link moves at least to be drawn."""
SPECK = 100
"""Pixels of the block's colour that hang together at least: less is glare."""
NEAR = 1.5
"""Decibels that the simulated motion may be below the tracked one."""


@dataclass(frozen=True, eq=False)
class Studio:
    """One camera's film, its plate with everything that moves removed, and what moves, posed link by link."""

    film: Film
    level: Level
    bodies: Bodies
    states: Float[Tensor, "T S"]
    block: int


@dataclass(frozen=True, eq=False)
class Foretold:
    """A recording whose pushes are foretold: its track, its motion on the table, first and last second of every push,
    what was learned from all the others (by push), how that foretells, and where it is drawn."""

    recording: Recording
    track: Track
    pushing: Pushing
    pushes: list[tuple[float, float]]
    learned: dict[int, Learned]
    predict: Predict
    studio: Studio


def open_studio(recording: Recording, track: Track, held: str) -> Studio:
    """Plates of the held-out camera from pixels that no body covers; colours from the other cameras alone."""
    cameras = _posed(recording.cameras, track)
    bodies, states = free_bodies(recording.world, track.world_from_link)
    clock = track.times.numpy()
    row = cameras.names.index(held)
    others = [index for index in range(len(cameras)) if index != row]
    films = [recording.films[index] for index in others]
    spread = np.linspace(0, len(clock) - 1, PAINTED).astype(int)
    level = levels_of(_some(cameras, others), first_plates(films, link_colours(bodies)), (1,))[1]
    shots = [shot_at(films, float(clock[index]), level) for index in spread]
    bodies, _ = paint(bodies, level, shots, states[spread])
    return studio_at(recording, track, bodies, states, held)


def studio_at(recording: Recording, track: Track, bodies: Bodies, states: Float[Tensor, "T S"], name: str) -> Studio:
    """The same bodies before a camera's own plates: pixels of its film that no body covers."""
    cameras, clock = _posed(recording.cameras, track), track.times.numpy()
    row = cameras.names.index(name)
    film, camera = recording.films[row], _some(cameras, [row])
    blank = first_plates([film], link_colours(bodies))
    spread = np.linspace(0, len(clock) - 1, CLEANED).astype(int)
    plates = clean_plates([film], levels_of(camera, blank, (1,))[1], bodies, clock[spread], states[spread], blank)
    block = track.link_names.index("tblock")
    return Studio(film, levels_of(camera, plates, (1,))[1], bodies, states, block)


def free_bodies(world: World, poses: Float[Tensor, "T L 4 4"]) -> tuple[Bodies, Float[Tensor, "T S"]]:
    """What moves in a world as links that each go their own way, and their states: all links' poses in a row.

    Links that stay where they are, a robot's root among them, are left to the plate.
    """
    still = (poses - poses[:1]).abs().amax((0, 2, 3)) < STILL  # these are on the plate already
    own = select_gaussians(world.gaussians, ~still[world.gaussians.links.long()])
    eye = torch.eye(6, dtype=torch.float64)
    middle = torch.zeros(3, dtype=torch.float64)
    things = tuple(Thing(link.name, index, 7 * index, eye, middle) for index, link in enumerate(world.links))
    states = pose_from_transform(poses).flatten(1)
    wide = torch.full_like(states[0], torch.inf)
    one = torch.ones(6 * len(things), dtype=torch.float64)
    return Bodies(own, poses[0], (), things, states[0], -wide, wide, one), states


def film_rows(told: Foretold, horizons: tuple[float, ...], out: Path) -> Iterator[Row]:
    """PSNR where something moved, of the simulated block, the tracked one and the last picture; the block's silhouette;
    and films of every push in `out`."""
    pushing, studio, plain = told.pushing, told.studio, list[float]()
    for seconds in horizons:
        found: dict[str, list[float]] = {name: [] for name in ("ours", "oracle", "copy", "block", "block oracle")}
        for push, own in told.learned.items():
            starts, steps = windows_of(pushing, push, told.pushes, seconds)
            starts = starts[::EVERY]
            if not len(starts):
                continue
            moved = told.predict(own, starts, steps)[:, -1]
            for start, place in zip(starts.tolist(), moved, strict=True):
                score_window(studio, pushing, start, start + steps, place, found)
                plain.append(gain(studio, pushing, start + steps))
        yield from _second_rows(seconds, found)
    yield at_least("robot and block drawn, over the background alone", float(np.median(plain)), "dB", 3.0,
                   note=f"camera {told.track.held}, {len(plain)} pictures")  # fmt: skip
    for push, own in told.learned.items():
        write_film(studio, pushing, told.pushes[push], own, told.predict, out / f"push-{push + 1}.mp4")


def _second_rows(seconds: float, found: dict[str, list[float]]) -> Iterator[Row]:
    middle = {name: float(np.nanmedian(values)) if values else float("nan") for name, values in found.items()}
    label = f"picture after {seconds:g} s, where something moves"
    yield Row(f"{label}, copy of the last picture", middle["copy"], "dB")
    yield Row(f"{label}, oracle motion", middle["oracle"], "dB")
    limit = max(middle["oracle"] - NEAR, middle["copy"])
    yield at_least(f"{label}, ours", middle["ours"], "dB", limit, middle["copy"], f"{len(found['ours'])} windows")
    yield at_least(f"block IoU after {seconds:g} s, ours", middle["block"], "", min(0.9, middle["block oracle"] - 0.03),
                   middle["block oracle"], "baseline: tracked motion")  # fmt: skip


def score_window(
    studio: Studio, pushing: Pushing, start: int, end: int, place: Tensor, found: dict[str, list[float]]
) -> None:
    """One window's end: three pictures against the footage, by one mask."""
    truth, before = picture(studio, pushing, end), picture(studio, pushing, start)
    state = simulated(studio, pushing, end, place)
    ours, oracle, first = (shown(studio, one) for one in (state, studio.states[end], studio.states[start]))
    changed = torch.stack([(truth - before).abs(), (oracle - first).abs(), (ours - first).abs()]).amax((0, -1))
    where = (changed > CHANGED) & (studio.level.known[0] > 0.5)
    if int(where.sum()) < 50:
        return
    for name, image in (("ours", ours), ("oracle", oracle), ("copy", before)):
        found[name].append(decibels(image, truth, where))
    real = block_seen(studio, truth)
    for name, one in (("block", state), ("block oracle", studio.states[end])):
        drawn = block_mask(studio, one)
        both = drawn | real
        if int(real.sum()) > 150:
            found[name].append(float((drawn & real).sum() / both.sum()))


def gain(studio: Studio, pushing: Pushing, row: int) -> float:
    """Decibels by which the drawn bodies beat the plate alone, where either shows a body."""
    truth = picture(studio, pushing, row)
    drawn = draw(studio.bodies, studio.states[row][None], studio.level, 0)
    over = drawn.rgb[0] + (1 - drawn.alpha[0][..., None]) * studio.level.plates[0]
    plate = studio.level.plates[0]
    where = (drawn.alpha[0] > 0.5) & (studio.level.known[0] > 0.5)
    return decibels(over, truth, where) - decibels(plate, truth, where) if bool(where.any()) else float("nan")


def simulated(studio: Studio, pushing: Pushing, row: int, place: Float[Tensor, " 3"]) -> Float[Tensor, " S"]:
    """All links where they were tracked, the block where it was simulated."""
    state = studio.states[row].clone()
    state[7 * studio.block : 7 * studio.block + 7] = pose_from_transform(pushing.links(place))
    return state


def shown(studio: Studio, state: Tensor) -> Float[Tensor, "H W 3"]:
    """A state drawn over the plate."""
    drawn = draw(studio.bodies, state[None], studio.level, 0)
    return (drawn.rgb[0] + (1 - drawn.alpha[0][..., None]) * studio.level.plates[0]).clamp(0, 1)


def picture(studio: Studio, pushing: Pushing, row: int) -> Float[Tensor, "H W 3"]:
    """The footage at an instant."""
    return _rgb(studio, float(pushing.times[row]))


def block_mask(studio: Studio, state: Tensor) -> Bool[Tensor, "H W"]:
    """Where the block is drawn and nothing stands before it."""
    own = studio.bodies.gaussians.links == studio.block
    marked = sh_from_rgb(torch.where(own[:, None], torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])))
    painted = replace(studio.bodies, gaussians=replace(studio.bodies.gaussians, sh=marked[:, None]))
    drawn = draw(painted, state[None], studio.level, 0)
    return (drawn.rgb[0, ..., 0] > drawn.rgb[0, ..., 1]) & (drawn.alpha[0] > 0.5)


def block_seen(studio: Studio, rgb: Float[Tensor, "H W 3"]) -> Bool[Tensor, "H W"]:
    """The block in a picture: its colour where the plate has another, in pieces that are no specks of glare."""
    from scipy import ndimage

    found = (orange(rgb) & ~orange(studio.level.plates[0])).numpy()
    pieces, _ = ndimage.label(found)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return torch.from_numpy(sizes[pieces] >= SPECK)


def orange(rgb: Float[Tensor, "H W 3"]) -> Bool[Tensor, "H W"]:
    """Where a picture has the block's colour."""
    red, green, blue = rgb.unbind(-1)
    return (red > 0.55) & (red - green > 0.25) & (red - blue > 0.3)


def decibels(image: Tensor, truth: Tensor, where: Tensor) -> float:
    """PSNR over a mask."""
    return float(-10 * torch.log10((image - truth)[where].square().mean().clamp_min(1e-10)))


def write_film(
    studio: Studio, pushing: Pushing, push: tuple[float, float], own: Learned, predict: Predict, path: Path
) -> None:
    """Footage beside the whole push simulated from its first instant, every second picture."""
    start = max(8, int(torch.searchsorted(pushing.times, push[0])) - 3)
    steps = min(int((push[1] - push[0] + 0.3) / pushing.dt), len(pushing.times) - 1 - start)
    places = predict(own, torch.tensor([start]), steps)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_video(path, 0.5 / pushing.dt) as add:
        for step in range(0, steps + 1, 2):
            drawn = shown(studio, simulated(studio, pushing, start + step, places[step]))
            pair = [as_uint8(part.numpy()) for part in (picture(studio, pushing, start + step), drawn)]
            add(side_by_side(pair, ("footage", "simulated")))


def _rgb(studio: Studio, time: float) -> Float[Tensor, "H W 3"]:
    return torch.from_numpy(studio.film.pictures[studio.film.nearest(time)].astype(np.float32) / 255)


def _posed(cameras: Cameras, track: Track) -> Cameras:
    """The cameras where the track was made with them."""
    rows = [track.camera_names.index(name) for name in cameras.names]
    return replace(cameras, world_from_camera=track.world_from_camera[rows].float())


def _some(cameras: Cameras, rows: list[int]) -> Cameras:
    names = tuple(cameras.names[row] for row in rows)
    return replace(cameras, K=cameras.K[rows], world_from_camera=cameras.world_from_camera[rows], names=names)
