"""The gate before fitting: what poses are worth, measured, and whether a world may be built on them.

That all pictures were registered proves nothing: a solver that holds on to a large moving thing registers all of them
too. What it cannot do is explain the rest: the matches that break the found motion yet move with their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gworld.capture.matching import Matched, open_database, picture_pair
from gworld.capture.options import GateOptions
from gworld.capture.sfm import Solution
from gworld.errors import InputError

_PAIRS = 120
_MATCHES = 50  # a pair with fewer says little
_NEAR = 0.004  # of the longer side: how far a match may lie from its epipolar line, at least 1.5 pixels


@dataclass(frozen=True)
class PoseQuality:
    """What was measured of poses; NaN where there was nothing to measure."""

    pictures: int
    """How many pictures there are."""
    registered: int
    """How many of them have a pose."""
    models: int
    """Into how many separate models the footage fell."""
    points: int
    """How many points were triangulated."""
    error: float
    """Mean reprojection error, in pixels of a picture 640 pixels wide."""
    track: float
    """In how many pictures a point is seen, on average."""
    parallax: float
    """The median over points of the widest angle between two of its rays, in degrees."""
    field: float
    """Horizontal field of view in degrees, of the camera where it is least plausible."""
    moving: float
    """Share of coherent matches that break the motion found: things that move, or a wrong motion."""
    explained: float
    """Share of all matches that obey the motion found."""


def measure_quality(solution: Solution, matched: Matched) -> PoseQuality:
    """Measure a solution on the features outside the masks."""
    model = solution.model
    errors, angles = _point_figures(model)
    fields = [
        np.degrees(2 * np.arctan(camera.width / (2 * camera.focal_length_x)))
        for camera in model.cameras.values()
        if camera.focal_length_x > 0
    ]
    moving, explained = motion_shares(solution, matched)
    return PoseQuality(
        pictures=len(matched.shots),
        registered=solution.registered,
        models=solution.models,
        points=int(model.num_points3D()),
        error=float(np.mean(errors)) if len(errors) else float("nan"),
        track=float(model.compute_mean_track_length()),
        parallax=float(np.median(angles)) if len(angles) else 0.0,
        field=float(max(fields, key=lambda field: abs(field - 60), default=float("nan"))),
        moving=moving,
        explained=explained,
    )


def find_faults(quality: PoseQuality, options: GateOptions = GateOptions()) -> list[str]:  # noqa: B008 (frozen)
    """What is wrong with poses, a phrase each; empty where nothing is."""
    low, high = options.field
    found = [
        (
            quality.registered < max(3, options.registered * quality.pictures, min(options.pictures, quality.pictures)),
            f"only {quality.registered} of {quality.pictures} pictures could be posed",
        ),
        (
            not quality.moving <= options.moving,
            f"{quality.moving:.0%} of the coherent motion contradicts the poses found, so that something large moves "
            "and the poses may be its own",
        ),
        (
            not quality.parallax >= options.parallax,
            f"points are seen under {quality.parallax:.1f} degrees of parallax (at least {options.parallax:g} are "
            "needed), so that depth is unknown",
        ),
        (
            quality.points < options.points,
            f"only {quality.points} points could be triangulated",
        ),
        (
            not quality.error <= options.error,
            f"the poses err by {quality.error:.1f} pixels",
        ),
        (
            not quality.track >= options.track,
            f"a point is seen in {quality.track:.1f} pictures only",
        ),
        (
            not low <= quality.field <= high,
            f"the lens found has an implausible field of view of {quality.field:.0f} degrees",
        ),
    ]
    return [text for wrong, text in found if wrong]


def check_quality(quality: PoseQuality, source: str, options: GateOptions = GateOptions(), also: str = "") -> None:  # noqa: B008 (frozen)
    """Raise `InputError` that says what was measured and what to do, when poses are below what `options` ask for;
    `also` is said then, too."""
    facts = find_faults(quality, options)
    if facts:
        facts += [also] * bool(also)
        raise InputError(f"`{source}`: {'; '.join(facts)}. {describe_quality(quality)}. {_advice(quality, options)}")


def describe_quality(quality: PoseQuality) -> str:
    """The measured figures in one line."""
    return (
        f"Measured: {quality.registered}/{quality.pictures} pictures in {quality.models} model(s), {quality.points} "
        f"points, error {quality.error:.2f} px, track {quality.track:.1f}, parallax {quality.parallax:.1f} degrees, "
        f"field of view {quality.field:.0f} degrees, {quality.explained:.0%} of the matches explained, "
        f"{quality.moving:.0%} moving"
    )


def motion_shares(solution: Solution, matched: Matched) -> tuple[float, float]:
    """Medians over pairs of pictures: the share of coherent matches that break the motion found, and of all matches
    the share that obeys it. NaN where no pair of posed pictures has matches.

    A match obeys when it lies within 0.4 % of the picture's longer side of its epipolar line. One that does not is
    coherent when at least two of its three nearest fellows moved alike.
    """
    moving, explained = [], []
    for one, two, first, second in _pairs(solution.model, matched):
        obeys = _obeys(one, two, first, second)
        strangers = _coherent(first[~obeys], second[~obeys], one.camera.width)
        moving.append(strangers / max(1, strangers + obeys.sum()))
        explained.append(obeys.mean())
    if not moving:
        return float("nan"), float("nan")
    return float(np.median(moving)), float(np.median(explained))


def _pairs(model: Any, matched: Matched) -> Iterator[tuple[Any, Any, np.ndarray, np.ndarray]]:
    """Posed pictures with at least 50 matches, verified or not, spread over the footage, and the matched pixels."""
    posed = {identity: model.image(identity) for identity in model.reg_image_ids()}
    with open_database(matched.database) as database:
        counts = zip(*database.read_num_matches(), strict=True)
        listed = sorted(picture_pair(number) for number, count in counts if count >= _MATCHES)
        listed = [(a, b) for a, b in listed if a in posed and b in posed]
        rows = sorted({round(row) for row in np.linspace(0, len(listed) - 1, min(len(listed), _PAIRS))})
        keypoints: dict[int, np.ndarray] = {}
        for a, b in (listed[row] for row in rows):
            for identity in (a, b):
                if identity not in keypoints:
                    keypoints[identity] = database.read_keypoints(identity)[:, :2].astype(np.float64)
            matches = database.read_matches(a, b)
            yield posed[a], posed[b], keypoints[a][matches[:, 0]], keypoints[b][matches[:, 1]]


def _obeys(one: Any, two: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which matches [N] lie near their epipolar lines, by Sampson's distance (Hartley and Zisserman, 11.4.3)."""
    relative = two.cam_from_world() * one.cam_from_world().inverse()
    rotation, shift = np.asarray(relative.rotation.matrix()), np.asarray(relative.translation)
    length = np.linalg.norm(shift)
    x, y, z = shift / length if length > 0 else shift
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    ones = np.ones((len(first), 1))
    a = np.concatenate([np.asarray(one.camera.cam_from_img(first)), ones], axis=1)
    b = np.concatenate([np.asarray(two.camera.cam_from_img(second)), ones], axis=1)
    lines, back = a @ essential.T, b @ essential
    top = np.abs((b * lines).sum(1))
    below = np.sqrt((lines[:, :2] ** 2).sum(1) + (back[:, :2] ** 2).sum(1))
    focal = 0.5 * (one.camera.focal_length_x + two.camera.focal_length_x)
    limit = max(1.5, _NEAR * max(one.camera.width, one.camera.height))
    with np.errstate(invalid="ignore", divide="ignore"):
        return top / below * focal <= limit


def _coherent(first: np.ndarray, second: np.ndarray, width: int) -> int:
    """How many matches move like at least two of their three nearest fellows."""
    from scipy.spatial import cKDTree

    if len(first) < 4:
        return 0
    motion = second - first
    distance, fellow = cKDTree(first).query(first, k=4)
    differs = np.linalg.norm(motion[fellow[:, 1:]] - motion[:, None], axis=-1)
    allowed = 0.01 * width + 0.1 * np.linalg.norm(motion, axis=1)
    alike = (differs <= allowed[:, None]) & (distance[:, 1:] <= 0.1 * width)
    return int((alike.sum(1) >= 2).sum())


def _point_figures(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each point its reprojection error in pixels of a 640-wide picture and its widest angle in degrees."""
    centres = {identity: model.image(identity).projection_center() for identity in model.reg_image_ids()}
    scale = 640 / np.mean([camera.width for camera in model.cameras.values()])
    errors, angles = [], []
    for point in model.points3D.values():
        rays = np.array([centres[element.image_id] for element in point.track.elements]) - point.xyz
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        angles.append(np.degrees(np.arccos(np.clip((rays @ rays.T).min(), -1, 1))))
        errors.append(point.error * scale)
    return np.array(errors), np.array(angles)


def _advice(quality: PoseQuality, options: GateOptions) -> str:
    if not quality.moving <= options.moving:
        return (
            "Mask what moves (`--masks.source`, or let it be found automatically); film again with the moving thing "
            "smaller or standing still; or give the poses (`--poses-from`)."
        )
    if not quality.parallax >= options.parallax:
        return (
            "Walk around the scene instead of turning on the spot; use a longer piece of the film; or give the poses "
            "(`--poses-from`)."
        )
    return (
        "Film more slowly and with more overlap between pictures; take more pictures of the film; or give the poses "
        "(`--poses-from`)."
    )
