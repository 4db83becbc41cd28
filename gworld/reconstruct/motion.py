"""Track what moves: per-frame poses and joints from calibrated video, by rendering and comparing.

world + films + cameras -> plates (what stands behind) -> a first state -> a scouting pass over a few instants
-> clean plates, colours, robots' roots -> a pass over all instants -> smooth motion with uncertainty
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gworld.agents.tree import Skeleton
from gworld.errors import InputError
from gworld.reconstruct.motion_base import refine_bases
from gworld.reconstruct.motion_bodies import Bodies, bodies_of
from gworld.reconstruct.motion_film import Film, Level, Plates, first_plates, levels_of, shot_at
from gworld.reconstruct.motion_follow import BELIEVED, Given, find_start, follow, given_joints
from gworld.reconstruct.motion_lens import straightened
from gworld.reconstruct.motion_options import TrackOptions
from gworld.reconstruct.motion_paint import clean_plates, link_colours, paint
from gworld.reconstruct.motion_result import Looks, Tracked, fill_states, tracked_motion
from gworld.reconstruct.motion_rig import refine_rig
from gworld.scene.cameras import Cameras
from gworld.scene.world import World

__all__ = ["Film", "Plates", "TrackOptions", "Tracked", "track_motion"]

Progress = Callable[[str, int, int], None]
SCOUT_SECONDS = 0.04
"""Between instants of the scouting pass: an arm that hurries is lost where pictures lie farther apart."""
PAINTED, CLEANED = 14, 90
"""Instants from which colours are learned, and plates."""


@dataclass(frozen=True, eq=False)
class _Task:
    """What is the same through all passes; times [T] in seconds."""

    films: list[Film]
    cameras: Cameras
    times: Float[np.ndarray, " T"]
    given: Given
    options: TrackOptions
    progress: Progress | None

    def levels(self, plates: Plates, gains: Tensor | None = None) -> dict[int, Level]:
        shrinks = tuple(
            sorted({8, 4, 2, 1, self.options.finest, min(8, 2 * self.options.finest), min(8, 4 * self.options.finest)})
        )
        return levels_of(self.cameras, plates, shrinks, gains, sharp=self.options.sharp)

    def told(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        return None if progress is None else lambda done, total: progress(what, done, total)


def track_motion(
    world: World,
    films: Sequence[Film],
    cameras: Cameras,
    times: Float[Tensor, " T"],
    options: TrackOptions = TrackOptions(),  # noqa: B008 (frozen)
    *,
    robots: Mapping[str, Skeleton] | None = None,
    joints: Mapping[str, Float[Tensor, "T V"]] | None = None,
    plates: Plates | None = None,
    progress: Progress | None = None,
) -> Tracked:
    """Follow agents and objects of a world through the footage of standing, calibrated cameras.

    Agents named in `robots` move by their joints, everything else that is not static as rigid bodies, from the world's
    rest poses on. `joints` are recorded values at `times` (NaN where missing), believed as `options.joint_sigma` says.
    `plates` show the scene without the bodies; without them they are made from the films. The shapes never change.
    Raises `InputError` for footage that does not fit, `UsageError` for names that are unknown.
    """
    _check(films, cameras, times)
    clock = times.double().numpy()
    facts: dict[str, float] = {}
    if options.refine_cameras:
        first = np.stack([film.pictures[film.nearest(float(clock[0]))] for film in films]).astype(np.float32) / 255
        rig = refine_rig(first, cameras, options.rig)
        cameras, films = rig.cameras, straightened(films, cameras, rig.lenses) if options.rig.lens else films
        facts |= {"rig_matches": rig.matches, "rig_before_px": rig.before, "rig_after_px": rig.after}
    bodies = bodies_of(world, robots or {}, options)
    given = given_joints(bodies, clock, joints or {}, options)
    task = _Task(list(films), cameras, clock, given, options, progress)
    looks, scouted = _scout(task, bodies, plates, facts)
    rows = np.unique(np.append(np.arange(0, len(clock), options.stride), len(clock) - 1))
    levels, start = task.levels(looks.plates, looks.gains), scouted.states[0]
    guide = (
        None if len(scouted.rows) == 1 else fill_states(looks.bodies, clock[rows], clock[scouted.rows], scouted.states)
    )
    followed = follow(
        looks.bodies, levels, task.films, clock[rows], start, given.at(rows), options, task.told("track"), guide=guide,
        shrinks=() if guide is None else (options.finest,),
    )  # fmt: skip
    return tracked_motion(world, looks, clock, rows, followed, options.smoothness, facts)


@dataclass(frozen=True, eq=False)
class _Scouted:
    """States [F,S] at some rows of the clock: the first alone where nothing was scouted."""

    rows: np.ndarray
    states: Float[Tensor, "F S"]


def _scouts(clock: np.ndarray) -> np.ndarray:
    """The rows of the clock that are scouted: at least 24, if there are as many."""
    if len(clock) < 2:
        return np.arange(len(clock))
    wide = round(SCOUT_SECONDS / float(np.median(np.diff(clock))))
    return np.unique(np.append(np.arange(0, len(clock), max(1, min(wide, len(clock) // 24))), len(clock) - 1))


def _scout(task: _Task, bodies: Bodies, known: Plates | None, facts: dict[str, float]) -> tuple[Looks, _Scouted]:
    """A coarse pass that leaves roots, plates, colours, gains, and states for the fine one to begin at."""
    clock, films, options = task.times, task.films, task.options
    rows = _scouts(clock)
    times, here = clock[rows], task.given.at(rows)
    start, gains, plates = bodies.start, torch.ones(len(films), 3), known
    for number in range(2 if known is None and options.paint else 1):  # colours tell bodies from scene, and reversely
        plates = known or first_plates(films, link_colours(bodies))
        levels = task.levels(plates, gains)
        start = find_start(bodies, levels, films, float(clock[0]), here, options, start, wide=number == 0)
        if options.paint:
            bodies = _first_painted(bodies, levels, films, clock[:1], start[None], arms=options.search <= BELIEVED)
    assert plates is not None
    scouted = _Scouted(rows[:1], start[None])
    if known is None or options.paint or (options.refine_base and bodies.arms):  # else there is nothing to learn
        levels = task.levels(plates, gains)
        coarse = replace(options, finest=min(8, 2 * options.finest))
        # One size: what is dense needs no wide reach, and the smallest pictures cost as much as these.
        told, one = task.told("scout"), (coarse.finest,)
        followed = follow(bodies, levels, films, times, start, here, coarse, told, shrinks=one)
        states = followed.states
        if options.refine_base and bodies.arms:
            roots = [arm.base for arm in bodies.arms]
            bodies, states = refine_bases(bodies, levels[2], films, times, states, options, followed.misfit)
            shifts = [float((a.base - b)[:3, 3].norm()) for a, b in zip(bodies.arms, roots, strict=True)]
            facts["base_mm"] = 1000 * max(shifts)
        lost = followed.lost.numpy()
        sure = np.arange(len(times)) if lost.all() else np.flatnonzero(~lost)
        if known is None:
            some = _spread(sure, CLEANED)
            plates = clean_plates(films, levels[1], bodies, times[some], states[some], plates)
        if options.paint:
            some = _spread(sure, PAINTED)
            bodies, gains = _painted(bodies, task.levels(plates, gains), films, times[some], states[some])
        scouted = _Scouted(rows, states)
    return Looks(task.cameras, plates, gains, bodies), scouted


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """So many of the rows, evenly spread."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]


def _painted(
    bodies: Bodies, levels: dict[int, Level], films: list[Film], times: np.ndarray, states: Tensor
) -> tuple[Bodies, Tensor]:
    shots = [shot_at(films, float(time), levels[1]) for time in times]
    return paint(bodies, levels[1], shots, states)


def _first_painted(
    bodies: Bodies, levels: dict[int, Level], films: list[Film], times: np.ndarray, states: Tensor, *, arms: bool
) -> Bodies:
    """One picture shows one side, of arms that were searched for often not the right place yet: only things take their
    colours from it, and arms whose start is believed."""
    shots = [shot_at(films, float(time), levels[1]) for time in times]
    painted, _ = paint(bodies, levels[1], shots, states, learn_gains=False)
    if arms:
        return painted
    links = torch.tensor([thing.link for thing in bodies.things], dtype=torch.int32)
    own = torch.isin(bodies.gaussians.links, links)[:, None, None]
    sh = torch.where(own, painted.gaussians.sh, bodies.gaussians.sh)
    return replace(bodies, gaussians=replace(bodies.gaussians, sh=sh))


def _check(films: Sequence[Film], cameras: Cameras, times: Tensor) -> None:
    if len(films) != len(cameras) or not films:
        raise InputError(f"{len(films)} films were given for {len(cameras)} cameras; one each is needed.")
    for index, film in enumerate(films):
        if film.pictures.shape[1:3] != (cameras.height, cameras.width):
            raise InputError(
                f"film {index} is {film.pictures.shape[2]} x {film.pictures.shape[1]}; its camera is {cameras.width} x "
                f"{cameras.height}. Give the calibration of these pictures."
            )
    if cameras.model != "pinhole" or any(cameras.links):
        raise InputError("tracking needs pinhole cameras that stand still; undistort the footage first.")
    if len(times) == 0 or not bool(torch.isfinite(times).all()) or bool((times.diff() <= 0).any()):
        raise InputError("the times to track at do not increase; give finite, increasing seconds.")
