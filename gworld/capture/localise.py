"""Fixed cameras found in a walk-around scan of the same room: features, landmarks, and the pose that explains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from gworld.capture.landmarks import Landmarks, find_landmarks
from gworld.capture.sift import Features, find_features, read_grey, still_picture
from gworld.errors import InputError
from gworld.scene.views import View, Views

_RATIO = 0.85
_GUIDED = 0.6  # cosine above which a feature near a landmark's place is taken for it
_CHUNK = 256


@dataclass(frozen=True)
class LocaliseOptions:
    """How fixed cameras are found in a scan."""

    scan_views: int = 60
    """Up to as many pictures of the scan are used."""
    min_matches: int = 20
    """At least so many landmarks must be found again."""
    min_cells: int = 5
    """They must lie in at least so many of the 4 x 4 parts of the picture."""
    max_spread: float = 0.02
    """The camera's place may be unsure by this share of its distance from the landmarks."""
    lens_error: bool = True
    """Also estimate a radial lens error where the lens is unknown and enough landmarks are found."""
    seed: int = 0
    """Seed of the random trials."""


@dataclass(frozen=True)
class FixedCamera:
    """A camera that stands still: its pictures (moving things vanish in their median) and, where known, its lens.

    K is (fx, fy, cx, cy) or empty; `distortion` as `CameraModel` "opencv" orders it; `mask` an 8-bit PNG, 0 = ignore.
    """

    name: str
    width: int
    height: int
    pictures: tuple[Path, ...]
    K: tuple[float, ...] = ()
    distortion: tuple[float, ...] = ()
    mask: Path | None = None


@dataclass(frozen=True)
class Localised:
    """A camera found: its view (pose, K, lens; the picture is its first), and how surely.

    `matches` landmarks, at `error` pixels (root mean square), in `cells` of 16 parts of the picture. `place_spread`
    (the scan's unit), `turn_spread` (radians) and `focal_spread` (relative) are standard errors by leaving out quarters
    of the picture; an error of the scan as a whole comes on top.
    """

    view: View
    matches: int
    error: float
    cells: int
    place_spread: float
    turn_spread: float
    focal_spread: float


@dataclass(frozen=True)
class _Lens:
    """A camera being fitted: rotation vector and translation of camera_from_world, K, OpenCV's eight lens terms."""

    pose: Float[ndarray, " 6"]
    K: Float[ndarray, "3 3"]
    terms: tuple[float, ...]


def localise_cameras(
    scan: Views,
    cameras: Sequence[FixedCamera],
    options: LocaliseOptions = LocaliseOptions(),
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Localised, ...]:
    """Poses of fixed cameras in the world of a posed scan of undistorted pictures; one result per camera, in order.

    Raises `InputError` naming the camera when the scan does not tell where it stands: too few landmarks found again, in
    too small a part of the picture, or a place that is too unsure.
    """
    landmarks = find_landmarks(scan, options.scan_views, progress)
    found = []
    for number, camera in enumerate(cameras):
        found.append(localise_camera(landmarks, camera, options))
        if progress is not None:
            progress("fixed cameras", (number + 1) / len(cameras))
    return tuple(found)


def localise_camera(
    landmarks: Landmarks, camera: FixedCamera, options: LocaliseOptions = LocaliseOptions()
) -> Localised:
    """The pose of one fixed camera among landmarks; raises `InputError` as `localise_cameras`."""
    if not camera.pictures:
        raise InputError(f"camera `{camera.name}` has no pictures; at least one is needed to find it in the scan.")
    picture = still_picture(camera.pictures, camera.width, camera.height)
    mask = None if camera.mask is None else read_grey(camera.mask, camera.width, camera.height)
    features = find_features(picture, mask, most=5000, threshold=0.001)
    rows, owners = match_landmarks(features, landmarks)
    guess, inliers = _first_guess(features.pixels[rows], landmarks.points[owners], camera, options)
    if guess is None or inliers < 8:
        raise InputError(
            f"camera `{camera.name}`: {inliers} of {len(rows)} matches with the scan agree on a place; "
            f"{options.min_matches} are needed. Scan the room again so that it shows what this camera sees, from about "
            "where it stands, under the same light."
        )
    reach = max(3.0, 0.012 * camera.width)
    for radius in (2 * reach, reach, reach):
        rows, owners = _guided(features, landmarks, guess, camera, radius)
        if len(rows) < 8:
            break
        guess, misses = _refine(guess, features.pixels[rows], landmarks.points[owners], camera, options)
    if len(rows) < 8:
        raise InputError(f"camera `{camera.name}`: its place in the scan does not hold up. Scan what it sees, again.")
    return _verdict(camera, guess, misses, features.pixels[rows], landmarks.points[owners], options)


def match_landmarks(features: Features, landmarks: Landmarks) -> tuple[ndarray, ndarray]:
    """Features [M] and landmarks [M] whose looks agree, and agree clearly better than with any other landmark."""
    rows, owners = [], []
    for start in range(0, len(features.pixels), _CHUNK):
        cosines = features.descriptors[start : start + _CHUNK] @ landmarks.descriptors.T
        best = cosines.argmax(1)
        first = cosines[np.arange(len(best)), best]
        owner = landmarks.owners[best]
        cosines[landmarks.owners[None] == owner[:, None]] = -1
        second = cosines.max(1)
        good = np.sqrt(np.maximum(2 - 2 * first, 0)) < _RATIO * np.sqrt(np.maximum(2 - 2 * second, 0))
        rows.append(start + np.flatnonzero(good))
        owners.append(owner[good])
    return np.concatenate(rows or [np.zeros(0, np.int64)]), np.concatenate(owners or [np.zeros(0, np.int64)])


def _first_guess(
    pixels: ndarray, points: ndarray, camera: FixedCamera, options: LocaliseOptions
) -> tuple[_Lens | None, int]:
    """Robust pose, and focal length where it is unknown (P4Pf), by COLMAP's LO-RANSAC; and how many matches agree."""
    import pycolmap
    from scipy.spatial.transform import Rotation

    if len(pixels) < 6:
        return None, len(pixels)
    lens = _known_lens(camera)
    flat = _undistorted(pixels, lens) if camera.K else pixels
    K = lens.K
    seen = pycolmap.Camera(
        model="PINHOLE", width=camera.width, height=camera.height, params=[K[0, 0], K[1, 1], K[0, 2], K[1, 2]]
    )
    if not camera.K:
        seen = pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=camera.width, height=camera.height, params=[K[0, 0], K[0, 2], K[1, 2]]
        )
    estimation, refinement = pycolmap.AbsolutePoseEstimationOptions(), pycolmap.AbsolutePoseRefinementOptions()
    estimation.estimate_focal_length = refinement.refine_focal_length = not camera.K
    estimation.ransac.max_error = max(4.0, 0.015 * camera.width)
    estimation.ransac.random_seed, estimation.ransac.min_inlier_ratio = options.seed, 0.02
    found = pycolmap.estimate_and_refine_absolute_pose(flat, points, seen, estimation, refinement)
    if found is None:
        return None, 0
    matrix = found["cam_from_world"].matrix()
    pose = np.concatenate([Rotation.from_matrix(matrix[:, :3]).as_rotvec(), matrix[:, 3]])
    focal = seen.params[0] / K[0, 0]
    return _Lens(pose, K * [[focal, 1, 1], [1, focal, 1], [1, 1, 1]], lens.terms), int(found["num_inliers"])


def _known_lens(camera: FixedCamera) -> _Lens:
    """The lens as given, or one of a common angle of view."""
    focal = 1.0 * max(camera.width, camera.height)
    fx, fy, cx, cy = camera.K or (focal, focal, camera.width / 2, camera.height / 2)
    terms = (*camera.distortion, *[0.0] * (8 - len(camera.distortion)))
    return _Lens(np.zeros(6), np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), terms)


def _undistorted(pixels: ndarray, lens: _Lens) -> ndarray:
    """Pixels as the pinhole camera of the same K would show them."""
    from gworld.capture.rays import pixel_rays

    identity = torch.eye(4, dtype=torch.float64)
    view = View("", 1, 1, torch.from_numpy(lens.K), identity, "opencv", lens.terms)
    return (pixel_rays(view, torch.from_numpy(pixels))[1].numpy() @ lens.K.T)[:, :2]


def _project(lens: _Lens, points: ndarray) -> tuple[ndarray, ndarray]:
    """Pixels [N,2], lens errors included, and depths [N]."""
    from scipy.spatial.transform import Rotation

    local = points @ Rotation.from_rotvec(lens.pose[:3]).as_matrix().T + lens.pose[3:]
    depth = np.where(np.abs(local[:, 2]) < 1e-9, 1e-9, local[:, 2])
    x, y = (local[:, :2] / depth[:, None]).T
    k1, k2, p1, p2, k3, k4, k5, k6 = lens.terms
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    across = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    down = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([across * lens.K[0, 0] + lens.K[0, 2], down * lens.K[1, 1] + lens.K[1, 2]], 1), local[:, 2]


def _guided(
    features: Features, landmarks: Landmarks, lens: _Lens, camera: FixedCamera, radius: float
) -> tuple[ndarray, ndarray]:
    """Each landmark with the feature near its place that looks most like it; one landmark per feature."""
    from scipy.spatial import cKDTree

    pixels, depths = _project(lens, landmarks.points)
    inside = (depths > 0) & (pixels >= 0).all(1) & (pixels < [camera.width, camera.height]).all(1)
    near = cKDTree(features.pixels).query_ball_point(pixels, radius)
    best: dict[int, tuple[float, int]] = {}
    ends = np.flatnonzero(np.diff(landmarks.owners, append=-1)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    for owner in np.flatnonzero(inside):
        if not near[owner]:
            continue
        looks = landmarks.descriptors[starts[owner] : ends[owner]]
        cosines = (features.descriptors[near[owner]] @ looks.T).max(1)
        row, cosine = near[owner][int(cosines.argmax())], float(cosines.max())
        if cosine > max(_GUIDED, best.get(row, (0.0, 0))[0]):
            best[row] = (cosine, int(owner))
    rows = np.array(sorted(best), np.int64)
    return rows, np.array([best[row][1] for row in rows], np.int64)


def _refine(
    lens: _Lens, pixels: ndarray, points: ndarray, camera: FixedCamera, options: LocaliseOptions
) -> tuple[_Lens, ndarray]:
    """Least squares over pose, focal length and k1 (those that are unknown) with a Cauchy loss.

    Gives the camera and the pixels by which each match misses.
    """
    from scipy.optimize import least_squares

    free = np.ones(8, bool)
    free[6] = not camera.K
    free[7] = not camera.K and options.lens_error and len(pixels) >= 60
    start = np.concatenate([lens.pose, [0.0, lens.terms[0]]])

    def moved(step: ndarray) -> _Lens:
        whole = start.copy()
        whole[free] += step
        focal = float(np.exp(np.clip(whole[6], -5, 5)))
        return _Lens(whole[:6], lens.K * [[focal, 1, 1], [1, focal, 1], [1, 1, 1]], (whole[7], *lens.terms[1:]))

    def errors(step: ndarray) -> ndarray:
        return (_project(moved(step), points)[0] - pixels).ravel()

    fit = least_squares(errors, np.zeros(int(free.sum())), loss="cauchy", f_scale=0.5, x_scale="jac", max_nfev=60)
    return moved(fit.x), np.linalg.norm(errors(fit.x).reshape(-1, 2), axis=1)


def _spreads(
    lens: _Lens, pixels: ndarray, points: ndarray, camera: FixedCamera, options: LocaliseOptions
) -> tuple[float, float, float]:
    """Standard errors of place, turn (radians) and focal length (relative), by leaving out quarters of the picture.

    Neighbouring matches err alike (they lie on one wall, in one corner of the lens), so leaving out single matches, or
    the usual covariance, promises several times too much.
    """
    middle = np.median(pixels, axis=0)
    quarter = 2 * (pixels[:, 0] > middle[0]) + (pixels[:, 1] > middle[1])
    left = [_refine(lens, pixels[quarter != q], points[quarter != q], camera, options)[0] for q in range(4)]
    places = np.stack([_place(one)[:3, 3] for one in left])
    turns = np.stack([_place(one)[:3, :3] for one in left])
    angles = np.arccos(np.clip((np.einsum("nij,ij->n", turns, _place(lens)[:3, :3]) - 1) / 2, -1, 1))
    focals = np.log([one.K[0, 0] / lens.K[0, 0] for one in left])
    factor = 3 / 4
    return (
        float(np.sqrt(factor * ((places - places.mean(0)) ** 2).sum())),
        float(np.sqrt(factor * (angles**2).sum())),
        float(np.sqrt(factor * ((focals - focals.mean()) ** 2).sum())),
    )


def _place(lens: _Lens) -> ndarray:
    """world_from_camera [4,4]."""
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_rotvec(lens.pose[:3]).as_matrix()
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn.T, -turn.T @ lens.pose[3:]
    return pose


def _verdict(
    camera: FixedCamera, lens: _Lens, misses: ndarray, pixels: ndarray, points: ndarray, options: LocaliseOptions
) -> Localised:
    """The result, if it is sure enough."""
    good = (misses < max(1.0, 3 * float(np.median(misses)))) & (_project(lens, points)[1] > 0)
    pixels, points = pixels[good], points[good]
    cells = len({(int(4 * x / camera.width), int(4 * y / camera.height)) for x, y in pixels})
    pose = _place(lens)
    spreads, share = (float("inf"),) * 3, float("inf")
    if len(pixels) >= options.min_matches:
        spreads = _spreads(lens, pixels, points, camera, options)
        share = spreads[0] / max(float(np.median(np.linalg.norm(points - pose[:3, 3], axis=1))), 1e-9)
    if len(pixels) < options.min_matches or cells < options.min_cells or share > options.max_spread:
        raise InputError(
            f"camera `{camera.name}`: {len(pixels)} landmarks of the scan are found again ({options.min_matches} "
            f"needed) in {cells} of 16 parts of its picture ({options.min_cells} needed), which leaves its place "
            f"unsure by {share:.1%} of their distance ({options.max_spread:.1%} at most). Scan what it sees, or "
            "give its calibration."
        )
    distorted = any(lens.terms)
    view = View(
        name=camera.name,
        width=camera.width,
        height=camera.height,
        K=torch.from_numpy(lens.K),
        world_from_camera=torch.from_numpy(pose),
        model="opencv" if distorted else "pinhole",
        distortion=tuple(map(float, lens.terms)) if distorted else (),
        image=camera.pictures[0],
        mask=camera.mask,
    )
    return Localised(view, len(pixels), float(np.sqrt((misses[good] ** 2).mean())), cells, *spreads)
