"""Statistics as LeRobot v3.0 keeps them: min, max, mean, std, count and five quantiles, per episode and over all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gworld.data.clips import read_frames
from gworld.scene.episode import Video

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
Stats = dict[str, np.ndarray]
IMAGE_SIDE = 300
SAMPLES = 100


def table_stats(values: np.ndarray) -> Stats:
    """Of rows [T, A], per column; NaN (unknown) does not count, and a column of nothing else is all NaN."""
    floats = values.astype(np.float64)
    known = np.isfinite(floats)
    floats = np.where(known.any(axis=0), floats, 0.0)  # all-NaN columns would only warn
    with np.errstate(invalid="ignore"):
        stats = {
            "min": np.nanmin(floats, axis=0),
            "max": np.nanmax(floats, axis=0),
            "mean": np.nanmean(floats, axis=0),
            "std": np.nanstd(floats, axis=0),
            "count": np.array([len(values)], np.int64),
        }
        stats |= {name: np.nanquantile(floats, share, axis=0) for name, share in QUANTILES.items()}
    if values.dtype.kind == "i":
        stats |= {name: stats[name].astype(np.int64) for name in ("min", "max")}
    lost = ~known.any(axis=0)
    if lost.any():
        stats |= {name: np.where(lost, np.nan, stats[name]) for name in stats if name != "count"}
    return stats


def image_stats(video: Video, frames: Sequence[int]) -> Stats:
    """Of the wanted frames of a video, per colour channel in 0..1, shaped [3, 1, 1]; at most 100 frames or T^0.75 of
    them are looked at, no more than 300 pixels across."""
    count = min(len(frames), max(SAMPLES, int(len(frames) ** 0.75)))
    chosen = sorted({frames[round(i)] for i in np.linspace(0, len(frames) - 1, count)})
    histogram = np.zeros((3, 256), np.int64)
    for pixels in read_frames(video.path, [video.first + index for index in chosen], IMAGE_SIDE):
        for channel in range(3):
            histogram[channel] += np.bincount(pixels[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255.0
    total = histogram.sum(axis=1)
    share = histogram.cumsum(axis=1) / total[:, None]
    mean = (histogram * levels).sum(axis=1) / total
    seen = histogram > 0
    stats = {
        "min": levels[seen.argmax(axis=1)],
        "max": levels[255 - seen[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(np.maximum((histogram * levels**2).sum(axis=1) / total - mean**2, 0.0)),
    }
    quantiles = {name: levels[(share >= level).argmax(axis=1)] for name, level in QUANTILES.items()}
    looked_at = {"count": np.array([len(chosen)])}

    def shaped(part: Stats) -> Stats:
        return {name: values.reshape(3, 1, 1) for name, values in part.items()}

    return shaped(stats) | looked_at | shaped(quantiles)


def pooled_stats(parts: Sequence[Stats]) -> Stats:
    """Of several episodes together: exact but for the quantiles, which are means weighted by count, as in LeRobot."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = (counts / counts.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)

    def stack(name: str) -> np.ndarray:
        return np.stack([part[name] for part in parts])

    with np.errstate(invalid="ignore"):
        mean = (weights * stack("mean")).sum(axis=0)
        variance = (weights * (stack("std") ** 2 + (stack("mean") - mean) ** 2)).sum(axis=0)
    return {
        "min": np.fmin.reduce(stack("min")),
        "max": np.fmax.reduce(stack("max")),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.array([int(counts.sum())], np.int64),
        **{name: (weights * stack(name)).sum(axis=0) for name in QUANTILES},
    }
