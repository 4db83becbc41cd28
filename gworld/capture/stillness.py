"""Is there any parallax in a footage? A camera that stands, or only turns, gives no depth; both are said so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gworld.capture.matching import Matched, open_database, picture_pair
from gworld.errors import InputError

_PAIRS = 60
_SHARED = 0.2  # of a picture's features: what rides along with the camera is matched in any pair, but it is little
_FOCALS = (0.6, 0.75, 0.9, 1.1, 1.3, 1.6, 2.0, 2.6)  # of the longer side


@dataclass(frozen=True)
class Motion:
    """How a camera moved, by matches between pictures: medians over pairs of pictures.

    `travel`: how far features moved, in shares of the picture's longer side, between pictures far apart; `still`: the
    share of verified matches that did not move by more than 0.4 %; `turning`: the share of verified matches that a
    pure rotation explains (for the one focal length that explains most).
    """

    travel: float
    still: float
    turning: float


def measure_motion(matched: Matched) -> Motion | None:
    """Measure verified matches of pictures far apart; None where there are none."""
    pairs = list(_far_pairs(matched))
    if not pairs:
        return None
    moved = [np.linalg.norm(second - first, axis=1) for first, second in pairs]
    shares = [[_turning(first, second, focal) for first, second in pairs] for focal in _FOCALS]
    return Motion(
        travel=float(np.median([np.median(lengths) for lengths in moved])),
        still=float(np.median([(lengths < 0.004).mean() for lengths in moved])),
        turning=float(max(np.median(row) for row in shares)),
    )


def check_motion(matched: Matched) -> None:
    """Raise `InputError` for a camera that stands still or turns about its own centre."""
    motion = measure_motion(matched)
    if motion is None:
        return
    what = ""
    if motion.still > 0.6 or motion.travel < 0.002:
        what = (
            f"the camera stands still ({motion.still:.0%} of what can be followed stays in its place), so that depth "
            "cannot be seen"
        )
    elif motion.turning > 0.93:
        what = (
            f"the camera only turns on the spot (a rotation explains {motion.turning:.0%} of the matches), so that "
            "depth cannot be seen"
        )
    if what:
        raise InputError(
            f"`{matched.footage.folder}`: {what}. Walk around the scene with the camera; add a walk-around film of the "
            "same room, into which fixed cameras are placed; or give the poses (`--poses-from`)."
        )


def _far_pairs(matched: Matched) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Verified matches of pictures of one camera that share much, of those the pairs furthest apart in order; centred
    and in shares of the longer side."""
    with open_database(matched.database) as database:
        images = {image.image_id: image for image in database.read_all_images()}
        order = {row.name: index for index, row in enumerate(sorted(matched.footage.shots, key=lambda s: s.name))}
        numbers, geometries = database.read_two_view_geometries()
        listed = []
        for number, geometry in zip(numbers, geometries, strict=True):
            a, b = picture_pair(number)
            enough = max(30, _SHARED * matched.features)
            if len(geometry.inlier_matches) < enough or images[a].camera_id != images[b].camera_id:
                continue
            gap = abs(order[matched.shots[images[a].name].name] - order[matched.shots[images[b].name].name])
            listed.append((gap, a, b, geometry.inlier_matches))
        listed.sort(key=lambda row: row[:3], reverse=True)
        wide = listed[: max(_PAIRS, len(listed) // 3)]
        for row in sorted({round(i) for i in np.linspace(0, len(wide) - 1, min(len(wide), _PAIRS))}):
            _, a, b, matches = wide[row]
            camera = matched.footage.cameras[matched.shots[images[a].name].camera]
            middle, side = np.array([camera.width, camera.height]) / 2, max(camera.width, camera.height)
            first, second = (database.read_keypoints(identity)[:, :2].astype(np.float64) for identity in (a, b))
            yield (first[matches[:, 0]] - middle) / side, (second[matches[:, 1]] - middle) / side


def _turning(first: np.ndarray, second: np.ndarray, focal: float) -> float:
    """The share of matches that one rotation explains to 0.6 % of the longer side, by re-weighted Kabsch (1976)."""
    a, b = _rays(first, focal), _rays(second, focal)
    weight = np.ones(len(a))
    miss = np.full(len(a), np.inf)
    for _ in range(10):
        left, _, right = np.linalg.svd((b * weight[:, None]).T @ a)
        turn = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
        turned = a @ turn.T
        miss = np.linalg.norm(focal * turned[:, :2] / turned[:, 2:] - second, axis=1)
        weight = 1 / (1 + (miss / 0.004) ** 2)
    return float((miss < 0.006).mean())


def _rays(points: np.ndarray, focal: float) -> np.ndarray:
    rays = np.concatenate([points / focal, np.ones((len(points), 1))], axis=1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)
