"""The simulated pushes refined: as the held-out camera would see them, beside what it saw.

The refiner that comes with gworld changes what the bodies cover and nothing else; it is given what the other cameras
saw before each push, and nothing of the held-out one. How strongly it changes each link is measured on the films of the
other cameras while nothing is pushed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.bench.realpush_data import Track
from gworld.bench.realpush_film import CHANGED, Foretold, Studio, picture, simulated, studio_at
from gworld.bench.rows import Row, at_least
from gworld.bench.track_real import Recording
from gworld.data.pairset import Pair
from gworld.files import find_asset
from gworld.formats.world import load_world
from gworld.reconstruct.motion_draw import draw
from gworld.reconstruct.motion_film import Film as Footage
from gworld.refine.sample import Film
from gworld.refine.saved import load_refiner
from gworld.refine.strength import measure_strengths
from gworld.render.conditions import render_clip, render_frame
from gworld.render.metrics import ssim_map
from gworld.render.video import as_uint8, open_video, side_by_side
from gworld.scene.clip import Clip, join_clips
from gworld.scene.world import World

EVERY = 4
"""Every how many instants are drawn."""
COVERED = 0.02
"""Opacity from which a body's pixels are the refiner's; the plate behind is footage."""
STRETCH, BEFORE, AFTER, ENDS = 24, 0.3, 0.4, 10
"""Instants of a stretch that strengths are measured on, seconds about a push and instants at both ends left out."""
FIGURES = ("PSNR where something moves", "PSNR of the rest", "SSIM where something moves", "SSIM of the rest")


def refined_rows(told: Foretold, folder: Path, out: Path) -> Iterator[Row]:
    """Raw and refined pictures of all pushes against the footage, and films of them; `folder` holds the `world` that
    tracking left."""
    place = find_asset("refiner")
    if place is None or not (folder / "world" / "world.json").is_file():
        yield Row("refined against raw", 0.0, "", note=f"no refiner, or no `{folder / 'world'}`: skipped")
        return
    world, refiner = load_world(folder / "world"), load_refiner(place)
    track, pushing, studio = told.track, told.pushing, told.studio
    strengths = measure_strengths(refiner.model, quiet_pairs(told, world))
    told_ = ", ".join(f"{world.links[k].name} {v:g}" for k, v in strengths.items() if v)
    yield Row(
        "links that are refined, of those shown", sum(map(bool, strengths.values())) / len(strengths), "", note=told_
    )
    found: list[tuple[list[float], list[float]]] = []
    for push, own in told.learned.items():
        first_, last = told.pushes[push]
        start = max(8, int(torch.searchsorted(pushing.times, first_)) - 3)
        steps = min(int((last - first_ + 0.3) / pushing.dt), len(pushing.times) - 1 - start)
        block = told.predict(own, torch.tensor([start]), steps)[0]
        photos = before_push(told.recording, track, world, start)
        film = Film(refiner.model, photos, strengths=strengths)
        rows = range(start, start + steps + 1, EVERY)
        frames = conditions(track.held, told, world, studio, photos, rows, block[::EVERY])
        with open_video(out / f"refined-{push + 1}.mp4", 1 / (2 * EVERY * pushing.dt)) as add:
            for row, frame in zip(rows, frames, strict=True):
                done, truth = film(frame).picture, picture(studio, pushing, row)
                if row == start:
                    first = (truth, frame.rgb[0])
                else:
                    found.append(judge(studio, truth, frame.rgb[0], done, first))
                shown = [as_uint8(part.numpy()) for part in (truth, frame.rgb[0], done)]
                add(side_by_side(shown, ("footage", "simulated", "refined")))
    raw, done_ = (np.nanmedian(np.array([pair[k] for pair in found]), axis=0) for k in (0, 1))
    for name, before, after in zip(FIGURES, raw, done_, strict=True):
        unit = "dB" if name.startswith("PSNR") else ""
        note = f"{len(found)} pictures of {len(told.learned)} pushes; baseline: raw"
        yield at_least(f"refined: {name}", float(after), unit, float(before), float(before), note)


def quiet_pairs(told: Foretold, world: World) -> Iterator[Pair]:
    """Tracked motion before each camera that is not held out, with its footage, while nothing is pushed; as photos what
    the others saw at the first instant."""
    assert world.cameras is not None
    track, pushing = told.track, told.pushing
    quiet = [
        row
        for row in range(ENDS, len(pushing.times) - ENDS)
        if not any(first - BEFORE <= float(pushing.times[row]) <= last + AFTER for first, last in told.pushes)
    ]
    stretches: list[list[int]] = []
    for row in quiet:
        if not stretches or row != stretches[-1][-1] + 1 or len(stretches[-1]) == STRETCH:
            stretches.append([])
        stretches[-1].append(row)
    for name in world.cameras.names:
        if name == track.held:
            continue
        studio = studio_at(told.recording, track, told.studio.bodies, told.studio.states, name)
        for stretch in (one for one in stretches if len(one) >= STRETCH // 2):
            rows = stretch[::EVERY]
            photos = before_push(told.recording, track, world, rows[0], {name})
            frames = conditions(name, told, world, studio, photos, rows, pushing.block[rows])
            truth = torch.stack([picture(studio, pushing, row) for row in rows])
            yield Pair(replace(join_clips(list(frames)), truth=truth), photos, "rollout", track.held)


def before_push(recording: Recording, track: Track, world: World, row: int, but: Set[str] = frozenset()) -> Clip:
    """What the cameras that are not held out, nor in `but`, saw at an instant, each with its own render."""
    assert world.cameras is not None
    poses, clips = track.world_from_link[row].float(), []
    for index, name in enumerate(world.cameras.names):
        if name in {track.held, *but}:
            continue
        film: Footage = recording.films[recording.cameras.names.index(name)]
        photo = torch.from_numpy(film.pictures[film.nearest(float(track.times[row]))].astype(np.float32) / 255)
        clips.append(render_clip(world.gaussians, world.cameras[index], poses[None], truth=photo[None]))
    return join_clips(clips)


def conditions(
    name: str,
    told: Foretold,
    world: World,
    studio: Studio,
    photos: Clip,
    rows: Sequence[int],
    block: Float[Tensor, "T 3"],
) -> Iterator[Clip]:
    """Frames of a camera over its plate, the block at places, with what the world knows of them; the plate is sure."""
    assert world.cameras is not None
    track, pushing = told.track, told.pushing
    camera = world.cameras[world.cameras.names.index(name)]
    thing = track.link_names.index("tblock")
    before = None
    for row, place in zip(rows, block, strict=True):
        poses = track.world_from_link[row].float().clone()
        poses[thing] = pushing.links(place).float()
        clip = render_frame(world.gaussians, camera, poses, before or (poses, camera), references=photos)
        before = (poses, camera)
        drawn = draw(studio.bodies, simulated(studio, pushing, row, place)[None], studio.level, 0)
        shown = (drawn.rgb[0] + (1 - drawn.alpha[0][..., None]) * studio.level.plates[0]).clamp(0, 1)
        sure = torch.where(drawn.alpha[0] < COVERED, 1.0, clip.confidence[0])
        yield replace(clip, rgb=shown[None], confidence=sure[None])


def judge(
    studio: Studio, truth: Tensor, raw: Tensor, done: Tensor, first: tuple[Tensor, Tensor]
) -> tuple[list[float], list[float]]:
    """The figures of the raw and of the refined picture, by one mask."""
    seen = studio.level.known[0] > 0.5
    moved = torch.maximum((truth - first[0]).abs(), (raw - first[1]).abs()).amax(-1) > CHANGED
    found = []
    for image in (raw, done):
        error, alike = (image - truth).square().mean(-1), ssim_map(image, truth).mean(-1)
        masks = (moved & seen, ~moved & seen)
        levels = [float(-10 * torch.log10(error[mask].mean().clamp_min(1e-10))) for mask in masks]
        found.append(levels + [float(alike[mask].mean()) for mask in masks])
    return found[0], found[1]
