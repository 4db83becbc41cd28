"""Poses of footage: known ones as they are, else found by structure from motion and judged before the fit."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gworld.capture.covisibility import disagreement
from gworld.capture.footage import Footage, FootageCamera, Shot
from gworld.capture.gate import PoseQuality, check_quality, find_faults, measure_quality
from gworld.capture.matching import Matched, Progress, match_footage
from gworld.capture.options import PoseOptions
from gworld.capture.sfm import (
    STRAIGHT,
    Solution,
    points_of,
    solve,
    solve_with_field,
    triangulate,
    views_of,
)
from gworld.capture.stillness import check_motion
from gworld.capture.undistort import undistort_views
from gworld.errors import InputError
from gworld.formats.transforms import write_transforms
from gworld.scene.views import View, Views

WORKSPACE = ".sfm"
FIELDS = (30, 45, 65, 85)  # degrees: of the lenses tried where the motion leaves the lens open
ALIKE = 1.1  # by how much the errors of lenses may differ that explain the pictures alike
HELD = "field of view held at"
GUESSED_LENS = (
    "the motion hardly tells the lens: a field of view of {:.0f} degrees did best of those tried, and depth is "
    "stretched by what it errs; film with more sideways motion, or give the poses (`--poses-from`)"
)
FEW = 8  # pictures: an incremental solution with fewer has nothing to say against a global one


@dataclass(frozen=True)
class Posed:
    """Pinhole views whose files lie in the folder of their `transforms.json`, what they are worth, and how found."""

    views: Views
    quality: PoseQuality
    how: str
    warnings: tuple[str, ...] = ()


def find_poses(
    footage: Footage,
    folder: Path,
    options: PoseOptions = PoseOptions(),  # noqa: B008 (frozen)
    known: Views | None = None,
    progress: Progress = None,
) -> Posed:
    """Pose the pictures of a footage and write them undistorted, with `transforms.json` and points, into `folder`.

    `known` are the poses of the footage's pictures where they are known; they are kept as they are. Otherwise they are
    found, in an arbitrary frame and unit (`metric` False). Raises `InputError` when the camera stands still or only
    turns, and when the poses fall below the gate.
    """
    workspace = folder / WORKSPACE
    try:
        if known is not None:
            return _keep(footage, known, folder, options, progress)
        matched = match_footage(footage, workspace, options.matching, progress)
        check_motion(matched)
        solution, quality = _best(list(solve(matched, workspace, options.solving, progress)), matched)
        solution, quality, lens = _with_held_lens(solution, quality, matched, workspace, options)
        check_quality(quality, str(footage.folder), options.gate, lens)
        views = undistort_views(views_of(solution, matched), folder, progress)
        write_transforms(views, folder / "transforms.json")
        how = f"{solution.how}: structure from motion of {len(views)} of {len(footage)} pictures"
        return Posed(views, quality, how, (GUESSED_LENS.format(quality.field),) if HELD in solution.how else ())
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _best(solutions: Sequence[Solution], matched: Matched) -> tuple[Solution, PoseQuality]:
    """The incremental solution, unless there is none to speak of or the global one tells the same and more.

    A global solution that contradicts the incremental one is not believed, nor is one most of which the incremental
    one does not bear out: it joins what does not belong together more often than not. Where a straight lens tells the
    same at hardly more error, it is taken: few points bend a lens to please themselves, and the focal length with it.
    """
    if not solutions:
        raise InputError(
            f"`{matched.footage.folder}`: no two pictures fit together (about {matched.features:.0f} points of "
            "interest per picture were found). Film the scene with more overlap between pictures; use more light or a "
            "scene with more texture; or give the poses (`--poses-from`)."
        )
    first, *others = [(solution, measure_quality(solution, matched)) for solution in solutions]
    for second in others:
        common, apart, degrees = disagreement(first[0].model, second[0].model)
        shared = common >= max(0.7 * first[0].registered, 0.6 * second[0].registered)
        same = shared and apart <= 0.1 and degrees <= 5
        if second[0].how == STRAIGHT:
            # A lens found bent turns the poses too, hence the wider limits.
            alike = shared and apart <= 0.2 and degrees <= 15 and second[0].registered >= 0.9 * first[0].registered
            simpler = alike and second[1].error <= 1.1 * first[1].error
            first = second if simpler or _worth(first[1]) <= 0 else first
            continue
        if first[0].registered < FEW or (same and _worth(second[1]) > _worth(first[1])):
            first = second
    return first


def _with_held_lens(
    solution: Solution, quality: PoseQuality, matched: Matched, workspace: Path, options: PoseOptions
) -> tuple[Solution, PoseQuality, str]:
    """Where the gate would refuse and the lens is unknown: the best of a few lenses held fixed; or, if lenses of widely
    different fields of view do equally well, the solution as it was, and that: a guess is no ground for a world.

    With few features, or straight motion, a mapper that also looks for the focal length is led astray by it. What
    passes as it is stays as it is: more pictures under a wrong lens are no gain.
    """
    hopeless = quality.moving > 2.5 * options.gate.moving
    known = any(camera.K or camera.photos for camera in matched.footage.cameras)
    if hopeless or known or not find_faults(quality, options.gate):
        return solution, quality, ""
    best, tried = (solution, quality), [quality]
    for degrees in FIELDS:
        held = solve_with_field(matched, workspace, degrees, options.solving)
        if held is None:
            continue
        held = replace(held, how=f"{held.how}, {HELD} {degrees} degrees")
        measured = measure_quality(held, matched)
        tried.append(measured)
        best = (held, measured) if _worth(measured) > _worth(best[1]) else best
    lens = _open_lens(tried)
    return (solution, quality, lens) if lens else (*best, "")


def _open_lens(tried: Sequence[PoseQuality]) -> str:
    """That the lens cannot be told, where lenses of widely different fields of view explain the pictures alike."""
    most, least = max(found.registered for found in tried), min(found.error for found in tried)
    alike = [found for found in tried if found.registered >= 0.9 * most and found.error <= ALIKE * least]
    narrow, wide = (choose(alike, key=lambda found: found.field, default=tried[0]) for choose in (min, max))
    if not alike or np.tan(np.radians(wide.field) / 2) < 2 * np.tan(np.radians(narrow.field) / 2):
        return ""
    return (
        f"the motion leaves the lens open (fields of view of {narrow.field:.0f} and {wide.field:.0f} degrees explain "
        f"the pictures alike, to {narrow.error:.2f} and {wide.error:.2f} px)"
    )


def _worth(quality: PoseQuality) -> float:
    """Registered share times what does not contradict the motion found, less the error, on unmasked pixels."""
    plausible = 12 <= quality.field <= 130
    share = quality.registered / quality.pictures if plausible else 0.0
    return share * (1 - np.nan_to_num(quality.moving, nan=1.0)) - 0.02 * np.nan_to_num(quality.error, nan=10.0)


def _keep(footage: Footage, known: Views, folder: Path, options: PoseOptions, progress: Progress) -> Posed:
    """Known poses: pictures undistorted, points triangulated where there are none."""
    if not len(known):
        raise InputError(
            f"none of the {len(footage)} pictures of `{footage.folder}` has a known pose; check `--poses-from`."
        )
    views = undistort_views(known, folder, progress)
    quality = _unmeasured(len(footage), len(views), len(views.points))
    if options.triangulate and not len(views.points) and len(views) > 1:
        views, quality = _with_points(views, folder, options, quality, progress)
    write_transforms(views, folder / "transforms.json")
    return Posed(views, quality, "known poses")


def _with_points(
    views: Views, folder: Path, options: PoseOptions, quality: PoseQuality, progress: Progress
) -> tuple[Views, PoseQuality]:
    """Views with triangulated points and what was measured of them; as they are where pictures show too little."""
    pinhole = _footage_of(views, folder)
    try:
        matched = match_footage(pinhole, folder / WORKSPACE, options.matching, progress)
    except InputError:
        return views, quality
    model = triangulate(matched, views, folder / WORKSPACE / "known", options.solving)
    points, colors = points_of(model)
    if not len(points):
        return views, quality
    measured = measure_quality(Solution(model, "known", 1), matched)
    return replace(views, points=points, colors=colors), replace(measured, pictures=quality.pictures)


def _footage_of(views: Views, folder: Path) -> Footage:
    """Pinhole views as footage whose cameras are known."""
    lenses: dict[tuple[float, ...], int] = {}
    shots = []
    for index, view in enumerate(views.views):
        K = view.K.double()
        lens = (view.width, view.height, *(K[i, j].item() for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))))
        number = lenses.setdefault(lens, len(lenses))
        if view.image is None:
            raise InputError(f"view `{view.name}` has no picture; put it beside the poses.")
        shots.append(Shot(view.name, number, view.image, index, view.time, view.mask))
    cameras = [
        FootageCamera(f"lens {number}", int(lens[0]), int(lens[1]), K=lens[2:]) for lens, number in lenses.items()
    ]
    return Footage(folder, tuple(cameras), tuple(shots))


def _unmeasured(pictures: int, registered: int, points: int) -> PoseQuality:
    unknown = float("nan")
    return PoseQuality(pictures, registered, 1, points, unknown, unknown, unknown, unknown, unknown, unknown)


def view_of(posed: Posed, name: str) -> View | None:
    """The view of a shot by its name, None where the shot has no pose."""
    return next((view for view in posed.views.views if Path(view.name).stem == name), None)
