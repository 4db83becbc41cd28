"""`gworld reconstruct --episodes`: a world learned from recorded episodes, whose cameras stand still and are known."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.cli.options import say
from gworld.data.store import open_episodes, read_episode
from gworld.errors import InputError
from gworld.files import atomic_folder
from gworld.formats.registry import world_folder
from gworld.formats.world import load_world, save_world
from gworld.reconstruct.coverage import save_coverage
from gworld.reconstruct.moving import Footage, MovingOptions, footage_coverage, read_footage, reconstruct_moving
from gworld.reconstruct.options import FitOptions
from gworld.render.api import RenderOptions
from gworld.render.metrics import psnr
from gworld.render.select import render
from gworld.render.video import as_uint8, open_video
from gworld.scene.world import World

OWN = ("world", "fit", "held-out.mp4")
STEPS, GAUSSIANS = 1500, 24_000
"""What is fitted when nothing is said: the scene to its plates, then scene and bodies together."""
SCANS, INSTANTS = 4, 6
"""Episodes that are learned from at most, and instants of each."""
FEW = 6
"""Cameras below which scenes come out foggy, which is said."""
FILMED, FPS = 40, 8.0
"""Instants of the held-out episode that are filmed, and how fast they are shown."""


@dataclass(frozen=True)
class Scan:
    """A store of episodes, the world whose bodies are in them, and how much is fitted."""

    episodes: Path
    bound: Path
    out: Path
    fit: FitOptions
    overwrite: bool = False


def reconstruct_scan(scan: Scan, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Learn the world from some of the store's episodes, judge it on another one; returns the figures and lines.

    Of `scan.bound` the shapes of robots and things are used, and their models; neither colours nor its static scene.
    Writes OUT/world, and OUT/held-out.mp4: footage above, the world at the poses of those instants below. With a single
    episode, nothing is left to judge by. Raises `InputError` for episodes without calibrated videos of standing
    cameras or without link poses.
    """
    bound, store = load_world(world_folder(scan.bound)), open_episodes(scan.episodes)
    if not len(store):
        raise InputError(f"`{scan.episodes}` holds no episodes; record some with `gworld record`, or track others.")
    numbers = list(range(len(store)))
    learn, judge = (numbers[:-1], numbers[-1]) if len(numbers) > 1 else (numbers, None)
    chosen = sorted({learn[round(place)] for place in np.linspace(0, len(learn) - 1, min(SCANS, len(learn)))})
    footage = read_footage(bound, [read_episode(store, number) for number in chosen], INSTANTS)
    held = None if judge is None else read_footage(bound, [read_episode(store, judge)], FILMED)
    say(f"{len(footage)} pictures of {len(footage.cameras)} cameras from {len(chosen)} of {len(store)} episodes")
    if len(footage.cameras) < FEW:
        say(f"warning: what {len(footage.cameras)} cameras see alike is little; {FEW} or more show where things are")
    with atomic_folder(scan.out, own=OWN, overwrite=scan.overwrite):
        pass
    world, _ = reconstruct_moving(bound, footage, scan.out / "fit", moving_options(scan.fit), progress)
    world = replace(world, folder=bound.folder, dynamics=bound.dynamics, refiner=None)
    save_world(world, scan.out / "world")
    save_coverage(footage_coverage(world.gaussians, footage), scan.out / "world")
    facts: dict[str, Any] = {"out": str(scan.out), "gaussians": len(world.gaussians), "pictures": len(footage)}
    if held is None:
        return facts | {"psnr": None, "lines": _lines(scan, world, "nothing was held out: there is one episode")}
    found, plain = judge_world(world, footage, held, scan.out / "held-out.mp4")
    result = (
        f"{found:.1f} dB on episode {judge}, which nothing was learned from (each camera's usual picture {plain:.1f})"
    )
    return facts | {"psnr": found, "baseline_psnr": plain, "lines": _lines(scan, world, result)}


def moving_options(fit: FitOptions) -> MovingOptions:
    """A fit's options for standing cameras: as many steps for the scene as for all together, even light."""
    steps = STEPS if fit.steps == FitOptions.steps else fit.steps
    static = replace(fit, budget="", steps=steps, gaussians=fit.gaussians or GAUSSIANS, sh_degree=0, hold_out=0)
    return MovingOptions(replace(static, score_every=0), steps=steps, spacing=0.008)


def judge_world(world: World, learned: Footage, held: Footage, film: Path) -> tuple[float, float]:
    """Median PSNR (dB) of the world drawn at held-out instants' poses, and of each camera's median picture; the film
    shows footage above, the world below."""
    count = len(held.cameras)
    usual = [np.median(learned.pictures[learned.camera == index], axis=0) for index in range(count)]
    ours, plain = [], []
    rows = [np.flatnonzero(held.camera == index) for index in range(count)]
    with open_video(film, FPS) as add:
        for instant in range(len(rows[0])):
            shown: list[tuple[np.ndarray, np.ndarray]] = []
            for index in range(count):
                row = int(rows[index][instant])
                truth = torch.from_numpy(held.pictures[row]).float() / 255
                drawn = _draw(world, held, row)
                ours.append(float(psnr(drawn, truth)))
                plain.append(float(psnr(torch.from_numpy(usual[index]).float() / 255, truth)))
                shown.append((held.pictures[row], as_uint8(drawn)))
            wide = shown[:3]
            add(np.concatenate([np.concatenate([pair[line] for pair in wide], axis=1) for line in (0, 1)], axis=0))
    return float(np.median(ours)), float(np.median(plain))


def _draw(world: World, held: Footage, row: int) -> Tensor:
    camera = held.cameras[int(held.camera[row])]
    options = RenderOptions(background=world.background or (0.0, 0.0, 0.0))
    with torch.no_grad():
        drawn = render(world.gaussians, held.poses[row][None], camera, outputs=("rgb",), options=options).rgb
    assert drawn is not None
    return drawn[0, 0].clamp(0, 1)


def _lines(scan: Scan, world: World, result: str) -> list[str]:
    place, store = (shlex.quote(str(path)) for path in (scan.out / "world", scan.episodes))
    if world.dynamics is None:
        follow = f"gworld train dynamics --episodes {store} --world {place} --out RUN"
    else:
        follow = f"gworld simulate --world {place} --compare {store} --out compared.mp4"
    return [
        f"world: {scan.out}/world, {len(world.gaussians):,} Gaussians; {scan.out}/held-out.mp4: footage above it",
        f"result: {result}",
        f"next: {follow}",
    ]
