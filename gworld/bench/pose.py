"""Poses of a generated room against exact truth: standing still, with actors masked or found, and bland."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from gworld.bench.rows import Row, at_least, at_most
from gworld.capture.footage import load_footage
from gworld.capture.masks import MaskOptions, mask_footage
from gworld.capture.matching import MatchOptions, match_footage
from gworld.capture.poses import find_poses
from gworld.capture.sfm import solve, views_of
from gworld.capture.similarity import fit_similarity, move_poses
from gworld.data.room_files import write_room
from gworld.data.rooms import Room, RoomOptions, film_room
from gworld.errors import InputError
from gworld.geometry import invert_transform, quat_from_matrix, rotvec_from_quat
from gworld.scene.views import Views

if TYPE_CHECKING:
    from gworld.bench.catalogue import BenchInput

SEEDS = 5
SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """A film, where its masks come from, and how far off in millimetres its cameras may be (None: no goal)."""

    name: str
    film: RoomOptions
    masks: Literal["none", "given", "found"] = "none"
    limit: float | None = None
    baseline: bool = True


CASES = (
    Case("static", RoomOptions(), limit=2.5),
    Case("13 % moving, masks given", RoomOptions(moving=0.13), "given", 2.5),
    Case("13 % moving, masks found", RoomOptions(moving=0.13), "found", 2.5, baseline=False),
    Case("63 % moving, masks given", RoomOptions(moving=0.63), "given", 20.0),
    Case("low contrast", RoomOptions(contrast=0.06)),
    Case("low contrast, noise", RoomOptions(contrast=0.06, noise=1.0)),
)


@dataclass(frozen=True)
class Score:
    """What came out of one film: camera error in mm, rotation in degrees, focal in percent, pictures posed, seconds."""

    camera: float
    rotation: float
    focal: float
    registered: int
    seconds: float


def rows(given: BenchInput) -> Iterator[Row]:
    """Medians over five seeds (`quick`: one) of each case; the baseline is plain SfM of the first seed (`quick`: none).

    Camera error is the root mean square after the best similarity (ATE). The baseline neither masks nor adapts.
    """
    seeds = range(given.seed, given.seed + (1 if given.quick else SEEDS))
    for case in CASES:
        scores, plain = [], None
        for seed in seeds:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                room = film_room(replace(case.film, seed=seed))
                scores.append(_run(case, room, folder))
                if case.baseline and seed == seeds[0] and not given.quick:
                    plain = _plain(room, folder / "plain")
        yield from _rows(case, scores, plain)


def score_views(views: Views, room: Room) -> tuple[float, float]:
    """Camera error in mm (root mean square) and mean rotation error in degrees, after the best similarity of the
    camera centres; views are named after the pictures' numbers."""
    index = [int(Path(view.name).stem.rsplit("-", 1)[1]) for view in views.views]
    truth = torch.from_numpy(room.world_from_camera[index])
    found = torch.stack([view.world_from_camera.double() for view in views.views])
    similarity, residuals = fit_similarity(found[:, :3, 3], truth[:, :3, 3])
    turns = (invert_transform(move_poses(similarity, found)) @ truth)[:, :3, :3]
    degrees = rotvec_from_quat(quat_from_matrix(turns)).norm(dim=1).rad2deg().mean()
    return 1000 * float(residuals.square().mean().sqrt()), float(degrees)


def _run(case: Case, room: Room, folder: Path) -> Score:
    """One film through masks and poses; seconds from pictures on disk to `transforms.json`."""
    write_room(room, folder / "film", masks=case.masks == "given")
    footage = load_footage(folder / "film")
    start = time.perf_counter()
    try:
        if case.masks == "found":
            footage = mask_footage(footage, MaskOptions())
        posed = find_poses(footage, folder / "posed")
    except InputError:  # refused at the gate: no camera has a pose
        return Score(math.inf, math.inf, math.inf, 0, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    focal = room.pictures.shape[2] / 2 / math.tan(math.radians(posed.quality.field) / 2)
    off = 100 * abs(focal / room.K[0, 0] - 1)
    return Score(*score_views(posed.views, room), off, len(posed.views), seconds)


def _plain(room: Room, folder: Path) -> Score:
    """The incremental mapper at one fixed threshold, without masks and without a gate."""
    write_room(room, folder / "film")
    footage = load_footage(folder / "film")
    start = time.perf_counter()
    try:
        matched = match_footage(footage, folder / "work", MatchOptions(wanted=0))
        first = next(solve(matched, folder / "work"), None)
    except InputError:
        first = None
    seconds = time.perf_counter() - start
    if first is None or first.registered < 3:
        return Score(math.inf, math.inf, math.inf, 0 if first is None else first.registered, seconds)
    return Score(*score_views(views_of(first, matched), room), math.nan, first.registered, seconds)


def _rows(case: Case, scores: list[Score], plain: Score | None) -> Iterator[Row]:
    def median(field: str) -> float:
        return statistics.median(getattr(score, field) for score in scores)

    def beside(field: str) -> float | None:
        return None if plain is None else getattr(plain, field)

    camera = f"{case.name}, camera error"
    if case.limit is None:
        yield Row(camera, median("camera"), "mm", baseline=beside("camera"))
    else:
        yield at_most(camera, median("camera"), "mm", case.limit, beside("camera"))
    if len(scores) > 1:
        yield Row(f"{camera}, worst of {len(scores)}", max(score.camera for score in scores), "mm")
    yield Row(f"{case.name}, rotation error", median("rotation"), "degrees", baseline=beside("rotation"))
    yield Row(f"{case.name}, focal error", median("focal"), "%")
    least = min(score.registered for score in scores)
    yield at_least(f"{case.name}, pictures posed, least", least, "", case.film.frames, beside("registered"))
    yield at_most(f"{case.name}, end to end", median("seconds"), "s", SECONDS, beside("seconds"))
