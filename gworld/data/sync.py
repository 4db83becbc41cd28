"""Two clocks made one: the offset and rate between what a video shows and what a robot logged.

Pictures change when the robot moves. The change from frame to frame is correlated with the speed of the logged joints
or hand over a range of lags (normalised cross-correlation; the peak is refined by a parabola), first over the whole
recording, then in windows, whose lags a robust line (Theil-Sen) joins to an offset and a rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gworld.data.clips import read_frames
from gworld.errors import InputError
from gworld.scene.episode import Episode

WIDTH = 64
BASELINE = 0.133
NOISE = 2.0
MIN_PEAK = 0.25
MIN_SIGMA = 4.0
MIN_LEAD = 0.04
"""A peak is believed when it is this high, this many standard deviations from chance, and this far above the next."""


@dataclass(frozen=True)
class Sync:
    """`log time = offset + rate * video time`, in seconds; `peak` the correlation there, `at_zero` without a shift;
    `sigma` how far it is from chance, in standard deviations; `video` the camera that was used."""

    offset: float
    rate: float
    peak: float
    at_zero: float
    sigma: float
    sure: bool
    video: str = ""

    def __str__(self) -> str:
        word = "" if self.sure else "not sure: "
        return (
            f"{word}offset {1000 * self.offset:+.0f} ms, rate {self.rate:.5f}, correlation {self.peak:.2f} "
            f"(unshifted {self.at_zero:.2f}), by camera {self.video!r}"
        )


def image_change(path: str | Path, first: int, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much each frame of `times` [F] differs from the one about 0.13 s earlier (at least one frame), and when.

    Returns the pairs' times [N, 2] and the mean absolute difference [N] at 64 pixels across, in grey levels beyond
    NOISE, after the mean brightness is taken out, so that exposure and coding count little.
    """
    step = max(1, round(BASELINE / float(np.median(np.diff(times)))))
    frames: deque[np.ndarray] = deque(maxlen=step)
    changes = []
    for frame in read_frames(path, range(first, first + len(times)), WIDTH):
        gray = frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        gray -= gray.mean()
        if len(frames) == step:
            changes.append(float(np.maximum(np.abs(gray - frames[0]) - NOISE, 0.0).mean()))
        frames.append(gray)
    return np.stack([times[:-step], times[step:]], axis=1), np.array(changes)


def motion_speed(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times between samples [T-1] and the speed there, each column [T, A] in units of its own usual speed.

    Columns that stay, or only tremble (a range below ten usual steps), do not count; NaN where one is unknown.
    """
    steps = np.abs(np.diff(values, axis=0))
    rate = steps / np.diff(times)[:, None]
    filled = np.where(np.isfinite(values), values, np.nan_to_num(values[np.isfinite(values).all(axis=1)].mean(axis=0)))
    known = np.where(np.isfinite(rate), rate, 0.0)
    usual = np.sqrt((known**2).mean(axis=0))
    moving = (usual > 1e-9) & (np.ptp(filled, axis=0) > 10 * np.median(np.nan_to_num(steps), axis=0))
    speed = np.sqrt(((rate[:, moving] / usual[moving]) ** 2).mean(axis=1)) if moving.any() else np.zeros(len(rate))
    return 0.5 * (times[1:] + times[:-1]), speed


def estimate_sync(
    pairs: np.ndarray,
    change: np.ndarray,
    log_times: np.ndarray,
    speed: np.ndarray,
    max_offset: float = 2.0,
    max_drift: float = 0.02,
) -> Sync:
    """Offset (at most `max_offset` s) and rate (within `max_drift` of 1) of the log's clock against the video's.

    `change` [N] happened between the two times of each row of `pairs` [N, 2]; `speed` [T] belongs to `log_times` [T]
    and may hold NaN.
    """
    frame = float(np.median(np.diff(pairs[:, 0]))) if len(pairs) > 1 else 1.0
    log = _Log(log_times, _flattened(speed))
    seen = _Seen(pairs, _flattened(change))
    step = min(frame, max(float(np.median(np.diff(log_times))), 1e-3))
    lags = np.arange(-round(max_offset / step), round(max_offset / step) + 1) * step
    curve = np.array([_correlation(seen, log, lag, 1.0) for lag in lags])
    if not np.isfinite(curve).any() or np.nanmax(curve) <= 0:
        return Sync(0.0, 1.0, 0.0, 0.0, 0.0, False)
    offset, peak = _refined_peak(lags, curve)
    at_zero = _correlation(seen, log, 0.0, 1.0)
    rate = 1.0
    line = _drift(seen, log, offset, frame, max_drift)
    if line is not None:
        shifted = _correlation(seen, log, *line)
        if shifted > peak - 0.02:
            (offset, rate), peak = line, shifted
    sigma = _sigmas(seen, log, offset, rate, peak)
    inside = abs(offset) < max_offset - 1.5 * step
    sure = bool(inside and peak >= MIN_PEAK and sigma >= MIN_SIGMA and _lead(curve) >= MIN_LEAD)
    return Sync(offset, rate, float(peak), float(at_zero) if np.isfinite(at_zero) else 0.0, sigma, sure)


def sync_episode(episode: Episode, max_offset: float = 2.0, camera: str = "") -> Sync | None:
    """Estimate from an episode's own pictures and states; of several cameras the one that agrees best speaks.

    Joints are used where there are any, else signals named like a state, else actions. None when there are fewer than
    8 steps or frames to go by. Raises `InputError` when no camera has the name `camera`.
    """
    if camera and camera not in [video.name for video in episode.videos]:
        raise InputError(f"there is no video {camera!r}; the episode has {[video.name for video in episode.videos]}.")
    found: list[Sync] = []
    motion = episode_motion(episode)
    if motion is None:
        return None
    for video in episode.videos:
        if camera and video.name != camera:
            continue
        times = video.times.numpy()
        if len(times) >= 8:
            pairs, change = image_change(video.path, video.first, times)
            found.append(replace(estimate_sync(pairs, change, *motion, max_offset), video=video.name))
    return max(found, key=lambda sync: (sync.sure, sync.peak), default=None)


def episode_motion(episode: Episode) -> tuple[np.ndarray, np.ndarray] | None:
    """Times between the steps of an episode and the speed of what moves there; None for fewer than 8 steps."""
    states = [value for name, value in episode.signals.items() if "state" in name or "pos" in name]
    tables = list(episode.joints.values()) or states or list(episode.actions.values())
    if not tables or len(episode) < 8:
        return None
    return motion_speed(episode.times.numpy(), torch.cat([t.double() for t in tables], dim=1).numpy())


def apply_sync(episode: Episode, sync: Sync) -> Episode:
    """The episode with its videos moved onto the log's clock; nothing is done for less than half a frame."""
    videos = []
    for video in episode.videos:
        if len(video.times) < 2:
            videos.append(video)
            continue
        moved = sync.offset + sync.rate * video.times
        half = 0.5 * float(video.times.diff().median())
        still = float((moved - video.times).abs().max()) < half
        videos.append(video if still else replace(video, times=moved))
    return replace(episode, videos=tuple(videos))


def held(times: np.ndarray, values: np.ndarray, clock: np.ndarray, gap: float, slack: float = 1e-6) -> np.ndarray:
    """The last of `values` [N, A] given at `times` [N] up to each instant of `clock` [T] (and `slack` seconds after);
    NaN where it is older than `gap` seconds, or there is none: what a command is between its messages."""
    if len(times) == 0:
        return np.full((len(clock), values.shape[1]), np.nan)
    index = np.searchsorted(times, clock + slack, side="right") - 1
    fresh = (index >= 0) & (clock - times[np.maximum(index, 0)] <= gap)
    return np.where(fresh[:, None], values[np.maximum(index, 0)], np.nan)


def between(times: np.ndarray, values: np.ndarray, clock: np.ndarray, gap: float) -> np.ndarray:
    """`values` [N, A] at `times` [N] on the straight line to each instant of `clock` [T]; NaN where the two samples
    around it are more than `gap` seconds apart: what a state is between its measurements."""
    if len(times) < 2:
        return np.full((len(clock), values.shape[1]), np.nan)
    late = np.clip(np.searchsorted(times, clock), 1, len(times) - 1)
    early = late - 1
    span = times[late] - times[early]
    weight = np.clip((clock - times[early]) / np.maximum(span, 1e-12), 0.0, 1.0)[:, None]
    mixed = values[early] * (1 - weight) + values[late] * weight
    # Exactly on a sample, or within the gap of the nearest where the recording begins or ends.
    near = np.minimum(np.abs(clock - times[early]), np.abs(clock - times[late]))
    inside = (clock >= times[0]) & (clock <= times[-1])
    known = np.where(inside, (span <= gap) | (near < 1e-9), near <= 0.5 * gap)
    return np.where(known[:, None], mixed, np.nan)


def _flattened(values: np.ndarray) -> np.ndarray:
    """Square root, so that a few violent moments do not decide alone; NaN stays."""
    return np.sqrt(np.maximum(values, 0.0))


@dataclass(frozen=True)
class _Seen:
    """Picture change [N] between pairs of times [N, 2]."""

    pairs: np.ndarray
    change: np.ndarray


class _Log:
    """A speed [T] at times [T], ready to be averaged over any stretch; NaN where it is unknown."""

    def __init__(self, times: np.ndarray, speed: np.ndarray) -> None:
        bad = ~np.isfinite(speed)
        self.times, self.speed = times, np.where(bad, 0.0, speed)
        trapezes = 0.5 * (self.speed[1:] + self.speed[:-1]) * np.diff(times)
        self.area = np.concatenate([[0.0], np.cumsum(trapezes)])
        self.holes = np.concatenate([[0], np.cumsum(bad)])

    def mean(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Mean over each [low, high]; NaN outside the log and over its gaps."""
        times = self.times
        inside = (high > times[0]) & (low < times[-1])
        low, high = np.clip(low, times[0], times[-1]), np.clip(high, times[0], times[-1])
        inside &= high - low > 1e-9
        value = (self._integral(high) - self._integral(low)) / np.maximum(high - low, 1e-9)
        first = np.maximum(np.searchsorted(times, low, side="right") - 1, 0)
        last = np.minimum(np.searchsorted(times, high) + 1, len(times))
        return np.where(inside & (self.holes[last] == self.holes[first]), value, np.nan)

    def _integral(self, at: np.ndarray) -> np.ndarray:
        index = np.clip(np.searchsorted(self.times, at, side="right") - 1, 0, len(self.times) - 2)
        left, right = self.speed[index], self.speed[index + 1]
        part = at - self.times[index]
        slope = (right - left) / (self.times[index + 1] - self.times[index])
        return self.area[index] + left * part + 0.5 * slope * part**2


def _correlation(seen: _Seen, log: _Log, offset: float, rate: float) -> float:
    """Pearson correlation of picture change and mean speed meanwhile, over what both know."""
    moved = log.mean(offset + rate * seen.pairs[:, 0], offset + rate * seen.pairs[:, 1])
    known = np.isfinite(moved) & np.isfinite(seen.change)
    if known.sum() < max(6, 0.4 * len(moved)):
        return float("nan")
    one, two = seen.change[known] - seen.change[known].mean(), moved[known] - moved[known].mean()
    scale = float(np.sqrt((one**2).sum() * (two**2).sum()))
    return float((one * two).sum()) / scale if scale > 1e-12 else float("nan")


def _refined_peak(lags: np.ndarray, curve: np.ndarray) -> tuple[float, float]:
    """The highest lag, between samples by the parabola through it and its neighbours."""
    best = int(np.nanargmax(curve))
    if not 0 < best < len(lags) - 1 or not np.isfinite(curve[best - 1 : best + 2]).all():
        return float(lags[best]), float(curve[best])
    left, top, right = curve[best - 1 : best + 2]
    bend = left - 2 * top + right
    shift = 0.5 * (left - right) / bend if bend < -1e-12 else 0.0
    return float(lags[best] + shift * (lags[1] - lags[0])), float(top - 0.25 * (left - right) * shift)


def _drift(seen: _Seen, log: _Log, offset: float, frame: float, max_drift: float) -> tuple[float, float] | None:
    """Offset and rate from the lags of overlapping windows; None where too few windows show one."""
    middle = seen.pairs.mean(axis=1)
    length = float(middle[-1] - middle[0])
    width = max(40 * frame, length / 6)
    if length < 3 * width:
        return None
    reach = max(2 * frame, max_drift * length)
    lags = offset + np.arange(-round(reach / frame) - 1, round(reach / frame) + 2) * frame
    points: list[tuple[float, float]] = []
    for begin in np.arange(middle[0], middle[-1] - width + 1e-9, width / 2):
        rows = (middle >= begin) & (middle <= begin + width)
        part = _Seen(seen.pairs[rows], seen.change[rows])
        curve = np.array([_correlation(part, log, lag, 1.0) for lag in lags])
        if np.isfinite(curve).any() and np.nanmax(curve) > 0.4 and 0 < int(np.nanargmax(curve)) < len(lags) - 1:
            points.append((begin + width / 2, _refined_peak(lags, curve)[0]))
    if len(points) < 6:
        return None
    slope = _theil_sen(points)
    begins = np.array([lag - slope * time for time, lag in points])
    begin = float(np.median(begins))
    # Clocks rarely differ: a slope counts when it stands five standard errors from none. Half the windows are new.
    scatter = 1.4826 * float(np.median(np.abs(begins - begin)))
    error = scatter * math.sqrt(12.0 / (0.5 * len(points)))
    if abs(slope) > max_drift or scatter > 0.75 * frame or abs(slope) * length < max(5.0 * error, 0.25 * frame):
        return None
    return begin, 1.0 + slope


def _theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """Median of the slopes between all pairs."""
    x, y = np.array(points).T
    one, two = np.triu_indices(len(x), 1)
    return float(np.median((y[two] - y[one]) / (x[two] - x[one])))


def _sigmas(seen: _Seen, log: _Log, offset: float, rate: float, peak: float) -> float:
    """How unlikely chance gives this correlation, in standard deviations (Fisher's z).

    Both signals change slowly, so that neighbours are no new evidence: the number of independent samples is Bartlett's
    (1946), N over the sum of the products of their autocorrelations.
    """
    moved = log.mean(offset + rate * seen.pairs[:, 0], offset + rate * seen.pairs[:, 1])
    known = np.isfinite(moved) & np.isfinite(seen.change)
    count = int(known.sum())
    if count < 6:
        return 0.0
    one, two = _autocorrelation(seen.change[known]), _autocorrelation(moved[known])
    independent = count / max(1.0, 1.0 + 2.0 * float((one[1:] * two[1:]).sum()))
    return float(np.arctanh(min(peak, 0.999)) * np.sqrt(max(independent - 3.0, 0.0)))


def _autocorrelation(values: np.ndarray) -> np.ndarray:
    """Autocorrelation at lags 0 .. N/4, from where it first falls below zero taken as none."""
    centred = values - values.mean()
    full = np.correlate(centred, centred, "full")[len(values) - 1 :]
    result = full[: max(2, len(values) // 4)] / max(full[0], 1e-12)
    below = np.flatnonzero(result < 0)
    return np.where(np.arange(len(result)) < (below[0] if len(below) else len(result)), result, 0.0)


def _lead(curve: np.ndarray) -> float:
    """How far the peak stands over the highest lag beyond the slopes on which it stands (1 where there is none)."""
    filled = np.where(np.isfinite(curve), curve, -1.0)
    left = right = int(np.argmax(filled))
    top = filled[left]
    while left > 0 and filled[left - 1] <= filled[left]:
        left -= 1
    while right < len(filled) - 1 and filled[right + 1] <= filled[right]:
        right += 1
    others = np.concatenate([filled[:left], filled[right + 1 :]])
    return float(top - others.max()) if len(others) else 1.0
