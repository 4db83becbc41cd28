"""Landmarks of a posed scan: points triangulated from matched features, with what they look like from everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from gworld.capture.sift import Features, find_features, match_mutual, read_grey
from gworld.errors import InputError
from gworld.scene.views import View, Views

MAX_TURN = np.radians(50)
MIN_ANGLE = np.radians(1.5)
MAX_MISS = 2.0
NEIGHBOURS = 10
FEATURES = 1500  # of each picture


@dataclass(frozen=True)
class Landmarks:
    """points [P,3] in the views' world; descriptors [D,128] of all their observations; owners [D] index the points."""

    points: Float[ndarray, "P 3"]
    descriptors: Float[ndarray, "D 128"]
    owners: Int[ndarray, " D"]


def find_landmarks(
    views: Views, most_views: int = 60, progress: Callable[[str, float], None] | None = None
) -> Landmarks:
    """Features of up to `most_views` posed pinhole views, matched under their epipolar geometry and triangulated.

    Raises `InputError` when pictures are missing or not pinhole, or when fewer than 50 points are found.
    """
    rows = sorted({round(row) for row in np.linspace(0, len(views) - 1, min(most_views, len(views)))})
    chosen = [views.views[row] for row in rows]
    cameras = [_camera(view) for view in chosen]
    features = []
    for number, view in enumerate(chosen):
        features.append(_features(view))
        if progress is not None:
            progress("features of the scan", (number + 1) / len(chosen))
    tracks = _Tracks([len(found.pixels) for found in features])
    pairs = _choose_pairs(chosen)
    for number, (a, b) in enumerate(pairs):
        found = match_mutual(features[a].descriptors, features[b].descriptors)
        misses = _epipolar_misses(
            cameras[a], cameras[b], features[a].pixels[found[:, 0]], features[b].pixels[found[:, 1]]
        )
        for one, other in found[misses < MAX_MISS].tolist():
            tracks.join(a, one, b, other)
        if progress is not None:
            progress("landmarks of the scan", (number + 1) / len(pairs))
    landmarks = _triangulate(tracks.groups(), cameras, features) if pairs else None
    if landmarks is None or len(landmarks.points) < 50:
        count = 0 if landmarks is None else len(landmarks.points)
        raise InputError(
            f"the scan of {len(chosen)} pictures gives {count} landmarks; 50 are needed to find "
            "another camera in it. Check that its poses are right, and scan more slowly and with more light."
        )
    return landmarks


class _Tracks:
    """Sets of features that show one point, by union-find over all features of all pictures."""

    def __init__(self, counts: list[int]) -> None:
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.parents = np.arange(self.starts[-1])

    def join(self, picture: int, feature: int, other: int, counterpart: int) -> None:
        roots = self._root(int(self.starts[picture] + feature)), self._root(int(self.starts[other] + counterpart))
        self.parents[max(roots)] = min(roots)

    def _root(self, node: int) -> int:
        while self.parents[node] != node:
            self.parents[node] = self.parents[self.parents[node]]
            node = int(self.parents[node])
        return node

    def groups(self) -> list[list[tuple[int, int]]]:
        """(picture, feature) of each point that two pictures or more show, none of them twice."""
        sets: dict[int, list[tuple[int, int]]] = {}
        pictures = np.searchsorted(self.starts, np.arange(len(self.parents)), side="right") - 1
        for node in range(len(self.parents)):
            picture = int(pictures[node])
            sets.setdefault(self._root(node), []).append((picture, node - int(self.starts[picture])))
        return [seen for seen in sets.values() if len(seen) > 1 and len({picture for picture, _ in seen}) == len(seen)]


def _camera(view: View) -> tuple[ndarray, ndarray, ndarray]:
    """K, camera_from_world rotation and translation."""
    if view.model != "pinhole":
        raise InputError(f"view `{view.name}` has the camera model {view.model}; undistort the scan's pictures first.")
    pose = np.linalg.inv(view.world_from_camera.double().numpy())
    return view.K.double().numpy(), pose[:3, :3], pose[:3, 3]


def _features(view: View) -> Features:
    if view.image is None:
        raise InputError(f"view `{view.name}` of the scan has no picture; pictures are needed to find a camera in it.")
    mask = None if view.mask is None else read_grey(view.mask, view.width, view.height)
    return find_features(read_grey(view.image, view.width, view.height), mask, most=FEATURES)


def _choose_pairs(views: list[View]) -> list[tuple[int, int]]:
    """Each view with the nearest that look about the same way."""
    poses = np.stack([view.world_from_camera.double().numpy() for view in views]) if views else np.zeros((0, 4, 4))
    axes, places = poses[:, :3, 2], poses[:, :3, 3]
    turns = np.arccos(np.clip(axes @ axes.T, -1, 1))
    gaps = np.linalg.norm(places[:, None] - places, axis=2)
    typical = np.median(gaps[gaps > 0]) if (gaps > 0).any() else 1.0
    cost = np.where(turns < MAX_TURN, gaps / typical + turns, np.inf)
    np.fill_diagonal(cost, np.inf)
    pairs = set()
    for row in range(len(views)):
        for other in np.argsort(cost[row], kind="stable")[:NEIGHBOURS]:
            if np.isfinite(cost[row, other]):
                pairs.add((min(row, int(other)), max(row, int(other))))
    return sorted(pairs)


def _epipolar_misses(
    first: tuple[ndarray, ndarray, ndarray], second: tuple[ndarray, ndarray, ndarray], pixels: ndarray, others: ndarray
) -> ndarray:
    """Pixels by which matches miss each other's epipolar lines (the worse side)."""
    turn = second[1] @ first[1].T
    shift = second[2] - turn @ first[2]
    x, y, z = shift
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ turn
    fundamental = np.linalg.inv(second[0]).T @ essential @ np.linalg.inv(first[0])
    ones = np.ones((len(pixels), 1))
    a, b = np.hstack([pixels, ones]), np.hstack([others, ones])
    lines, back = a @ fundamental.T, b @ fundamental
    error = np.abs((b * lines).sum(1))
    tiny = 1e-12
    return np.maximum(
        error / np.maximum(np.linalg.norm(lines[:, :2], axis=1), tiny),
        error / np.maximum(np.linalg.norm(back[:, :2], axis=1), tiny),
    )


def _triangulate(
    groups: list[list[tuple[int, int]]], cameras: list[tuple[ndarray, ndarray, ndarray]], features: list[Features]
) -> Landmarks:
    """Points where the rays of each group meet well and at a wide enough angle; groups of one size go at once."""
    projections = np.stack([K @ np.column_stack([turn, shift]) for K, turn, shift in cameras])
    centres = np.stack([-turn.T @ shift for _, turn, shift in cameras])
    starts = np.concatenate([[0], np.cumsum([len(found.pixels) for found in features])])
    pixels = np.concatenate([found.pixels for found in features])
    looks = np.concatenate([found.descriptors for found in features])
    points, descriptors, counts = [np.zeros((0, 3))], [np.zeros((0, 128), np.float32)], [np.zeros(0, np.int64)]
    for size in sorted({len(group) for group in groups}):
        seen = np.array([group for group in groups if len(group) == size])
        pictures, rows = seen[..., 0], starts[seen[..., 0]] + seen[..., 1]
        found, good = _meet(projections[pictures], pixels[rows])
        units = found[:, None] - centres[pictures]
        units /= np.maximum(np.linalg.norm(units, axis=2, keepdims=True), 1e-12)
        good &= np.einsum("pni,pmi->pnm", units, units).min((1, 2)) < np.cos(MIN_ANGLE)
        points.append(found[good])
        descriptors.append(looks[rows[good]].reshape(-1, 128))
        counts.append(np.full(int(good.sum()), size))
    lengths = np.concatenate(counts)
    return Landmarks(np.concatenate(points), np.concatenate(descriptors), np.repeat(np.arange(len(lengths)), lengths))


def _meet(projections: ndarray, pixels: ndarray) -> tuple[ndarray, ndarray]:
    """Points [P,3] of projections [P,n,3,4] and pixels [P,n,2]: linear, then Gauss-Newton; and which are good.

    A good one lies before all its cameras and misses no pixel by more than `MAX_MISS`.
    """
    rows = (pixels[..., None] * projections[:, :, 2:] - projections[:, :, :2]).reshape(len(pixels), -1, 4)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    whole = np.linalg.eigh(np.einsum("pki,pkj->pij", rows, rows))[1][:, :, 0]
    points = whole[:, :3] / np.where(np.abs(whole[:, 3:]) < 1e-12, 1e-12, whole[:, 3:])
    good = np.ones(len(points), bool)
    for step in range(4):
        image = np.einsum("pnij,pj->pni", projections[..., :3], points) + projections[..., 3]
        depths = np.where(np.abs(image[..., 2]) < 1e-9, 1e-9, image[..., 2])
        error = image[..., :2] / depths[..., None] - pixels
        good &= (image[..., 2] > 1e-9).all(1)
        if step < 3:
            slopes = projections[:, :, :2, :3] - (error + pixels)[..., None] * projections[:, :, 2:, :3]
            jacobian = (slopes / depths[..., None, None]).reshape(len(points), -1, 3)
            normal = np.einsum("pki,pkj->pij", jacobian, jacobian) + 1e-12 * np.eye(3)
            slope = np.einsum("pki,pk->pi", jacobian, error.reshape(len(points), -1))
            points = points - np.linalg.solve(normal, slope[..., None])[..., 0]
    return points, good & (np.linalg.norm(error, axis=2).max(1) < MAX_MISS)
