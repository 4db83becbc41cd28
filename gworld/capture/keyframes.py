"""Which pictures of a film to keep: the sharpest of each stretch of camera motion.

One cheap pass looks at small pictures and keeps a few numbers of each; what to keep is decided from those. Motion is
measured against an anchor picture, not from picture to picture, so that the noise of a camera at rest does not add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

LOOK_SIDE = 640
"""Longer side of the pictures that sharpness is judged on."""
TRACK_SIDE = 320
"""Longer side of the pictures that motion is measured on."""
MOVING_QUANTILE = 0.6
"""Of the tracked points' motions, the one taken for the camera's: two fifths of the picture must move."""
REANCHOR = 0.06
"""Motion, as a share of the longer side, after which points are found anew."""
SURVIVORS = 0.7
"""Share of the anchor's points that must still be tracked: what covers fewer cannot outvote the rest."""
REST = 0.01
"""Motion, as a share of the longer side, that is not yet a camera's way: tremble, or noise of the tracks."""
STILL = 0.1
"""A camera whose picture moves less than this share of its longer side in all stands still: no poses follow from it."""
MIN_POINTS = 12
PER_CELL = 4
"""Points in each of the cells, twelve along the longer side."""


@dataclass(frozen=True)
class KeyframeOptions:
    """Which pictures are taken out of videos; photos are kept all."""

    count: int = 150
    """At most so many pictures are kept of a moving camera's video, spread evenly over its path."""
    spacing: float = 0.01
    """How far the picture moves between two that are kept, as a share of its longer side; `count` may widen it."""
    sharpness: float = 0.6
    """Pictures less sharp than this share of the sharpest within half a second are dropped (0 keeps all)."""
    least: int = 8
    """Fewer sharp pictures than this of a single moving camera are refused."""
    still: int = 30
    """Pictures kept of a camera that stands still, spread evenly over time."""
    max_side: int = 1296
    """Pictures are made smaller until their longer side has at most so many pixels (0 keeps the size)."""
    every: int = 1
    """Only each so-many-th picture is looked at."""


@dataclass(frozen=True)
class Looks:
    """What was measured of each picture looked at, in order.

    `path` is how far the picture has moved so far, in longer sides; while the camera turns back it falls a little.
    `parallax` is the share of the motion that no turn of the camera explains (nan where nothing moved).
    """

    index: np.ndarray
    time: Float[np.ndarray, "N"]
    sharpness: Float[np.ndarray, "N"]
    path: Float[np.ndarray, "N"]
    parallax: float

    @property
    def still(self) -> bool:
        """Whether the camera stood still all the time."""
        return bool(len(self.path) == 0 or float(self.path.max()) < STILL)


def look(pictures: Iterable[tuple[int, float | None, UInt8[np.ndarray, "H W 3"]]], max_gap: float = 1.0) -> Looks:
    """Measure the pictures `(index, time, pixels)` of one camera in order; memory holds a few numbers of each.

    Where pictures carry no time their order stands for it, `max_gap` apart.
    """
    rows: list[tuple[float, float, float]] = []
    indices: list[int] = []
    tracker = Tracker()
    for index, moment, pixels in pictures:
        grey = grey_of(pixels, LOOK_SIDE)
        path = tracker.follow(grey_of(pixels, TRACK_SIDE) if max(grey.shape) > TRACK_SIDE else grey)
        indices.append(index)
        rows.append((len(rows) * max_gap if moment is None else moment, sharpness_of(grey), path))
    table = np.array(rows, np.float64).reshape(-1, 3)
    parallax = float(np.median(tracker.parallax)) if tracker.parallax else float("nan")
    return Looks(np.array(indices, np.int64), table[:, 0], table[:, 1], table[:, 2], parallax)


def sharpness_of(grey: UInt8[np.ndarray, "H W"]) -> float:
    """How much fine detail a picture has beside its coarse detail, in the direction where it has least of it.

    With G and H the mean outer products of the gradients after smoothing by 0.8 and by 3 pixels it is the root of the
    least eigenvalue of G relative to H. Contrast and exposure cancel, where the variance of the Laplacian (Pech-Pacheco
    et al. 2000) follows them, and a smear in one direction shows in full. A picture without structure has 0.
    """
    import cv2

    # The finer smoothing is there as well: otherwise sensor noise, the finest detail of all, counts as sharpness.
    fine = _gradients(cv2.GaussianBlur(grey, (0, 0), 0.8))
    coarse = _gradients(cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 3.0))
    if np.linalg.det(coarse) < 1e-6 * max(1e-6, float(np.trace(coarse))) ** 2:
        return 0.0
    least = float(np.linalg.eigvals(np.linalg.solve(coarse, fine)).real.min())
    return float(np.sqrt(max(0.0, least)))


def _gradients(image: np.ndarray) -> np.ndarray:
    """The mean outer product [2, 2] of an image's gradients."""
    import cv2

    across, down = (cv2.Sobel(image, cv2.CV_32F, *order, ksize=3, scale=0.125).ravel() for order in ((1, 0), (0, 1)))
    mixed = float(across @ down)
    return np.array([[float(across @ across), mixed], [mixed, float(down @ down)]]) / max(1, len(across))


@dataclass
class Tracker:
    """Follows corner points from an anchor picture and adds up how far the picture moves."""

    parallax: list[float] = field(default_factory=list)
    base: float = 0.0
    reached: float = 0.0
    previous: Any = None
    anchor: Any = None
    points: Any = None
    alive: Any = None

    def follow(self, grey: UInt8[np.ndarray, "H W"]) -> float:
        """The way of the picture up to this one, in longer sides."""
        if self.previous is None or self.previous.shape != grey.shape or len(self.anchor) < MIN_POINTS:
            self._anchor(grey)  # the first, or nothing to follow so far
            return self.base
        self._track(grey)
        alive, side = int(self.alive.sum()), max(grey.shape)
        if alive < MIN_POINTS:  # a cut, or too fast to follow
            self.base += max(self.reached, REANCHOR)
            self._anchor(grey)
            return self.base
        moved = np.linalg.norm(self.points - self.anchor, axis=1)[self.alive]
        self.reached = float(np.quantile(moved, MOVING_QUANTILE)) / side
        self.previous = grey
        way = self.base + self.reached
        if self.reached > REANCHOR or alive < SURVIVORS * len(self.anchor):
            # Points are also lost where something passes in front of a camera at rest: that is no way of its own.
            self.base = way if self.reached > REST else self.base
            self._judge_parallax()
            self._anchor(grey)
        return way

    def _anchor(self, grey: np.ndarray) -> None:
        self.anchor = _corners(grey)
        self.points, self.previous, self.reached = self.anchor.copy(), grey, 0.0
        self.alive = np.ones(len(self.anchor), bool)

    def _track(self, grey: np.ndarray) -> None:
        """Move the points on, and give up those that do not find their way back."""
        import cv2

        def flow(start: Any, end: Any, points: Any) -> tuple[Any, Any, Any]:
            following: Any = cv2.calcOpticalFlowPyrLK
            return following(start, end, points, None, winSize=(15, 15), maxLevel=3)

        ahead, good, _ = flow(self.previous, grey, self.points)
        back, home, _ = flow(grey, self.previous, ahead)
        found = (good.ravel() > 0) & (home.ravel() > 0) & (np.abs(back - self.points).max(axis=1) < 0.7)
        self.points, self.alive = ahead, self.alive & found

    def _judge_parallax(self) -> None:
        """What a homography, which explains any turn of the camera, leaves of the motion since the anchor."""
        import cv2

        anchor, points = self.anchor[self.alive], self.points[self.alive]
        if len(points) < 3 * MIN_POINTS or self.reached < REST:
            return
        cv2.setRNGSeed(0)
        H, _ = cv2.findHomography(anchor, points, cv2.RANSAC, 1.0)
        if H is None:
            return
        predicted = cv2.perspectiveTransform(anchor[None], H)[0]
        left, moved = (np.linalg.norm(points - other, axis=1) for other in (predicted, anchor))
        self.parallax.append(min(1.0, float(np.quantile(left, 0.75) / max(1e-6, np.quantile(moved, 0.75)))))


def _corners(grey: np.ndarray) -> np.ndarray:
    """Corner points [N, 2], at most `PER_CELL` in each cell of a grid, so that no rich patch outvotes the rest."""
    import cv2

    side = max(grey.shape)
    found = cv2.goodFeaturesToTrack(grey, 2000, 0.001, max(3.0, side / 64))
    if found is None:
        return np.zeros((0, 2), np.float32)
    points = found.reshape(-1, 2)  # the best first
    cell = (points // (side / 12)).astype(np.int64)
    number = cell[:, 1] * 64 + cell[:, 0]
    order = np.argsort(number, kind="stable")
    starts = np.r_[True, np.diff(number[order]) > 0]
    place = np.arange(len(order))
    rank = place - np.maximum.accumulate(np.where(starts, place, 0))
    return np.ascontiguousarray(points[np.sort(order[rank < PER_CELL])])


def relative_sharpness(looks: Looks, reach: float = 0.5) -> Float[np.ndarray, "N"]:
    """Each picture's sharpness as a share of the best (95th percentile) within `reach` seconds."""
    from scipy.ndimage import percentile_filter

    if len(looks.time) < 2:
        return np.ones(len(looks.time))
    step = max(1e-6, float(np.median(np.diff(looks.time))))
    window = 2 * max(2, round(reach / step)) + 1
    best = percentile_filter(looks.sharpness, 95, size=min(window, 2 * len(looks.time) - 1), mode="nearest")
    return looks.sharpness / np.maximum(best, 1e-9)


def choose(looks: Looks, options: KeyframeOptions) -> np.ndarray:
    """Positions within `looks` of the pictures to keep, rising.

    A camera at rest keeps `options.still`, spread over time. One that moves has its path cut into equal stretches, as
    many as `count` and `spacing` allow, and keeps the sharpest picture of each (nearer the middle at equal sharpness);
    stretches without a sharp one keep none.
    """
    if looks.still:
        return spread(looks.time, options.still)
    relative = relative_sharpness(looks)
    stretch = max(options.spacing, float(looks.path.max()) / max(1, options.count - 1))
    place = looks.path / stretch
    number = np.round(place)
    score = relative * (1.0 - 0.3 * np.abs(place - number) * 2.0)
    score[relative < options.sharpness] = -1.0
    order = np.lexsort((-score, number))
    first = np.r_[True, np.diff(number[order]) > 0] if len(order) else np.zeros(0, bool)
    best = order[first]
    return np.sort(best[score[best] > 0])


def spread(times: np.ndarray, count: int) -> np.ndarray:
    """Positions of the pictures nearest to `count` instants spread evenly over `times`, each once."""
    if len(times) == 0 or count < 1:
        return np.zeros(0, np.int64)
    instants = np.linspace(times[0], times[-1], count) if count > 1 else times[:1]
    return nearest(times, instants)


def nearest(times: np.ndarray, instants: np.ndarray) -> np.ndarray:
    """Positions of the pictures nearest to each of `instants`, rising, each once."""
    after = np.clip(np.searchsorted(times, instants), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(1, np.int64)
    closer = instants - times[after - 1] <= times[after] - instants
    return np.unique(np.where(closer, after - 1, after))


def grey_of(pixels: np.ndarray, side: int) -> UInt8[np.ndarray, "h w"]:
    """Brightness of an RGB (or grey) picture `[H, W, 3]`, made smaller until its longer side has `side` pixels."""
    import cv2

    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    scale = side / max(grey.shape)
    if scale < 1.0:
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(grey)
