"""What is in a splat file or a posed image set, as plain numbers; PLY files are streamed, so size does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gworld.formats.merge import rotations
from gworld.formats.registry import detect_format, read_table, read_views, world_folder
from gworld.formats.table import SplatTable

PERCENTILES = (1, 50, 99)


def describe(path: str | Path) -> dict[str, Any]:
    """Count, bounds, SH degree, scale and opacity percentiles, links, frame and memory of a splat file or world.

    A posed image set gives its number of views, sizes, models and points. Raises `InputError` like the readers.
    """
    name = detect_format(path)
    if name in ("colmap", "transforms"):
        return _describe_views(path, name)
    return _describe_splats(path, name)


def _describe_splats(path: str | Path, name: str) -> dict[str, Any]:
    means, scales, logits, links = [], [], [], []
    last: SplatTable | None = None
    for part in _parts(path, name):
        means.append(_in_world(part))
        scales.append(part.log_scales.max(axis=1))
        logits.append(part.opacity_logits)
        links.append(np.bincount(part.links, minlength=len(part.link_table)))
        last = part
    last = read_table(path) if last is None else last  # a stream of no rows yields nothing
    links = links or [np.zeros(len(last.link_table), np.int64)]
    target = world_folder(path) if name == "world" else Path(path)
    target = target.parent if target.name == "meta.json" else target
    files = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
    count = sum(len(part) for part in means)
    result: dict[str, Any] = {
        "path": str(path),
        "format": name,
        "file_bytes": sum(file.stat().st_size for file in files),
        "count": count,
        "sh_degree": last.sh_degree,
        "memory_bytes": count * 4 * (12 + 3 * (last.sh_degree + 1) ** 2),
        "axes": last.axes or "unstated (y down by habit)",
        "metric": last.metric,
        "links": {link.name: int(number) for link, number in zip(last.link_table, np.sum(links, axis=0), strict=True)},
    }
    if count:
        result |= _statistics(np.concatenate(means), np.concatenate(scales), np.concatenate(logits))
    return result


def _in_world(table: SplatTable) -> np.ndarray:
    """Centres [N,3] with every link at its rest pose."""
    if len(table.link_table) == 1:
        return table.means
    poses = np.array([link.pose for link in table.link_table])
    turned = np.einsum("nij,nj->ni", rotations(poses[:, 3:])[table.links], table.means)
    return (turned + poses[table.links, :3]).astype(np.float32)


def _parts(path: str | Path, name: str) -> Iterator[SplatTable]:
    if name == "ply":
        from gworld.formats.ply import iter_ply

        yield from iter_ply(Path(path))
    else:
        yield read_table(path)


def _statistics(means: np.ndarray, log_scales: np.ndarray, logits: np.ndarray) -> dict[str, Any]:
    opacity = 1.0 / (1.0 + np.exp(-np.clip(logits, -80, 80)))
    return {
        "bounds": {"low": _round(means.min(axis=0)), "high": _round(means.max(axis=0))},
        "bounds_98_percent": {
            "low": _round(np.percentile(means, 1, axis=0)),
            "high": _round(np.percentile(means, 99, axis=0)),
        },
        "largest_scale": _percentiles(np.exp(log_scales)),
        "opacity": _percentiles(opacity),
        "nearly_transparent": int((opacity < 1.0 / 255.0).sum()),
    }


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{p}": float(f"{v:.4g}") for p, v in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True)}


def _round(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _describe_views(path: str | Path, name: str) -> dict[str, Any]:
    views = read_views(path)
    sizes = sorted({f"{view.width}x{view.height}" for view in views.views})
    return {
        "path": str(path),
        "format": name,
        "views": len(views),
        "images_found": sum(view.image is not None and view.image.is_file() for view in views.views),
        "sizes": sizes,
        "camera_models": sorted({view.source_model or view.model for view in views.views}),
        "points": len(views.points),
        "metric": views.metric,
    }
