"""Writing GLB with `KHR_gaussian_splatting`: a node and a splat primitive for every link, motion as node tracks."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gworld.errors import InputError, UsageError
from gworld.files import atomic_write
from gworld.formats.axes import FROM_RDF, quat_from_matrix
from gworld.formats.gltf_accessors import EXTENSION
from gworld.formats.table import Axes, SplatTable, check_table
from gworld.scene.harmonics import rgb_from_sh

FROM_GLTF = np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]])
"""Right/Forward/Up coordinates of a point given in glTF's Left/Up/Forward (its own inverse)."""

MARK = "gworld"
"""Key of our own notes in `extras`: the table's axes and metric flag, the first instant of an animation."""

Motion = tuple[int, np.ndarray | None, np.ndarray | None]
"""A moving link: its number, positions [T,3] or None, unit wxyz quaternions [T,4] without sign jumps or None."""

MAX_LINKS = 2048
"""Links that a file may have: more would take seconds to read."""

_SHADING = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}


def upright(axes: Axes | None) -> np.ndarray:
    """Rotation [3,3] of the root node: takes a table's coordinates to glTF's; None counts as RDF."""
    return FROM_GLTF.T @ FROM_RDF["RFU"] @ FROM_RDF[axes or "RDF"].T


def write_gltf(
    table: SplatTable, path: str | Path, times: ArrayLike | None = None, link_poses: ArrayLike | None = None
) -> None:
    """Write a GLB that viewers show upright: a node with a splat primitive for every link, animated if poses are given.

    times [T] seconds, strictly increasing; link_poses [T,L,7] `x y z qw qx qy qz` in the table's axes and unit (glTF
    reads it as metres). Axes None counts as RDF. Rows are grouped by link and otherwise keep their order; links whose
    pose never leaves their rest pose get no track. Raises `InputError` for values that cannot be written, `UsageError`
    for a name that does not end in `.glb`.
    """
    if Path(path).suffix.lower() != ".glb":
        raise UsageError(f"`{path}`: Gaussians are written as binary glTF; choose a name that ends in `.glb`.")
    table = check_table(table, str(path))
    motion = check_motion(table, times, link_poses, str(path))
    if len(table.link_table) > MAX_LINKS:
        raise InputError(
            f"`{path}`: {len(table.link_table)} links are more than the {MAX_LINKS} that a GLB may have here."
        )
    if (np.diff(table.links) < 0).any():
        table = table.select(np.argsort(table.links, kind="stable"))
    root, columns = _scene_json(table), _columns(table)
    tracks = _add_animation(root, *motion) if motion else b""
    size = sum(view["byteLength"] for view in root["bufferViews"])
    if size > 0xFFFF0000:
        raise InputError(
            f"`{path}` would hold {size >> 20} MB; a GLB ends at 4 GB. Decimate the scene, or lower its SH."
        )
    if size:
        root["buffers"] = [{"byteLength": size}]
    text = json.dumps({key: value for key, value in root.items() if value != []}, allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    with atomic_write(path) as stream:
        stream.write(struct.pack("<4sII", b"glTF", 2, 20 + len(text) + (8 + size if size else 0)))
        stream.write(struct.pack("<I4s", len(text), b"JSON") + text)
        if size:
            stream.write(struct.pack("<I4s", size, b"BIN\0"))
        for column in columns:
            stream.write(np.ascontiguousarray(column.pack(table)).data)
        stream.write(tracks)


def check_motion(
    table: SplatTable, times: ArrayLike | None, link_poses: ArrayLike | None, source: str
) -> tuple[np.ndarray, list[Motion]] | None:
    """Times [T] and the motion of each link that leaves its rest pose.

    None where nothing moves or no poses are given. Raises `InputError` when times and poses do not fit the table.
    """
    if times is None and link_poses is None:
        return None
    if times is None or link_poses is None:
        raise InputError(f"`{source}`: an animation needs both times and link poses; only one was given.")
    instants, poses = np.asarray(times, np.float64), np.asarray(link_poses, np.float64)
    count, links = instants.size, len(table.link_table)
    if instants.ndim != 1 or count == 0 or poses.shape != (count, links, 7):
        raise InputError(
            f"`{source}`: times have shape {list(instants.shape)} and link poses {list(poses.shape)}; [T] and "
            f"[T, {links}, 7] are needed."
        )
    if not (np.isfinite(instants).all() and (np.diff(instants) > 0).all() and (np.abs(poses) < 1e9).all()):
        raise InputError(f"`{source}`: times must increase strictly and poses be finite. Check the rollout for NaN.")
    norms = np.linalg.norm(poses[..., 3:], axis=-1, keepdims=True)
    if norms.min() < 1e-9:
        raise InputError(f"`{source}`: a link's rotation has zero length; unit quaternions are needed.")
    moving = []
    for link, rest in enumerate(table.link_table):
        quats = np.concatenate([unit_quats(np.array([rest.pose[3:]])), poses[:, link, 3:] / norms[:, link]])
        turns = np.where((quats[1:] * quats[:-1]).sum(-1) < 0, -1.0, 1.0)
        quats[1:] *= np.cumprod(turns)[:, None]
        places, home = poses[:, link, :3], np.array(rest.pose[:3])
        moved = np.abs(places - home).max() > 2e-7 * max(1.0, np.abs(home).max())
        turned = np.abs(quats[1:] - quats[0]).max() > 2e-7
        if moved or turned:
            moving.append((link, places if moved else None, quats[1:] if turned else None))
    return (instants, moving) if moving else None


@dataclass(frozen=True)
class _Column:
    """One attribute of every Gaussian: its name, accessor type, component type, bytes per row and how it is made."""

    name: str
    kind: str
    component: int
    stride: int
    pack: Callable[[SplatTable], np.ndarray]


def _columns(table: SplatTable) -> list[_Column]:
    def coefficient(index: int) -> Callable[[SplatTable], np.ndarray]:
        return lambda rows: _floats(rows.sh[:, index])

    if not len(table):
        return []
    return [
        _Column("POSITION", "VEC3", 5126, 12, lambda rows: _floats(rows.means)),
        _Column(
            f"{EXTENSION}:ROTATION", "VEC4", 5126, 16, lambda rows: _floats(np.roll(unit_quats(rows.quats_wxyz), -1, 1))
        ),
        _Column(f"{EXTENSION}:SCALE", "VEC3", 5126, 12, lambda rows: _floats(linear_scales(rows))),
        _Column(f"{EXTENSION}:OPACITY", "SCALAR", 5126, 4, lambda rows: _floats(opacities(rows))),
        *(
            _Column(f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index - degree**2}", "VEC3", 5126, 12, coefficient(index))
            for degree in range(table.sh_degree + 1)
            for index in range(degree**2, (degree + 1) ** 2)
        ),
        _Column("COLOR_0", "VEC4", 5121, 4, _fallback_colors),
    ]


def linear_scales(table: SplatTable) -> np.ndarray:
    """Standard deviations [N,3] along the principal axes, float64."""
    return np.exp(table.log_scales, dtype=np.float64)


def opacities(table: SplatTable) -> np.ndarray:
    """Opacities [N] in 0..1, float64."""
    return 1 / (1 + np.exp(-np.clip(table.opacity_logits, -300, 300).astype(np.float64)))


def _fallback_colors(table: SplatTable) -> np.ndarray:
    """What viewers without splats show as points: linear RGB (IEC 61966-2-1) and opacity as bytes [N,4]."""
    display = np.clip(rgb_from_sh(table.sh[:, 0]), 0, 1)
    linear = np.where(display <= 0.04045, display / 12.92, ((display + 0.055) / 1.055) ** 2.4)
    return np.rint(np.concatenate([linear, opacities(table)[:, None]], axis=1) * 255).astype(np.uint8)


def _floats(values: np.ndarray) -> np.ndarray:
    return values.astype("<f4", copy=False)


def unit_quats(quats_wxyz: np.ndarray) -> np.ndarray:
    """Quaternions of unit length; those that are unit to float32 rounding keep their bits."""
    norms = np.linalg.norm(quats_wxyz.astype(np.float64), axis=-1, keepdims=True)
    return np.where(np.abs(norms - 1) < 2e-7, quats_wxyz, quats_wxyz / norms)


def _scene_json(table: SplatTable) -> dict[str, Any]:
    """The file's JSON without animation: root node, a node for every link, a mesh for every link that owns rows."""
    turn = quat_from_matrix(upright(table.axes))
    mark = {"axes": table.axes, "metric": table.metric}
    links = range(1, len(table.link_table) + 1)
    nodes: list[dict[str, Any]] = [
        {"name": MARK, "rotation": np.roll(turn, -1).tolist(), "children": list(links), "extras": {MARK: mark}}
    ]
    columns = _columns(table)
    meshes: list[dict[str, Any]] = []
    accessors: list[dict[str, Any]] = []
    ends = np.cumsum(np.bincount(table.links, minlength=len(table.link_table))).tolist()
    for link, (start, end) in zip(table.link_table, pairwise([0, *ends]), strict=True):
        quat = unit_quats(np.array(link.pose[3:], np.float64))
        nodes.append({"name": link.name, "translation": list(link.pose[:3]), "rotation": np.roll(quat, -1).tolist()})
        if link.parent >= 0:
            nodes[-1]["extras"] = {MARK: {"parent": link.parent}}  # poses are world poses, so nodes stay side by side
        if end > start:
            attributes = {column.name: len(accessors) + index for index, column in enumerate(columns)}
            primitive = {"attributes": attributes, "mode": 0, "extensions": {EXTENSION: _SHADING}}
            nodes[-1]["mesh"] = len(meshes)
            meshes.append({"name": link.name, "primitives": [primitive]})
            accessors += [_accessor(column, view, start, end) for view, column in enumerate(columns)]
            bounds = table.means[start:end].min(0).tolist(), table.means[start:end].max(0).tolist()
            accessors[-len(columns)].update(min=bounds[0], max=bounds[1])
    offsets = np.cumsum([0, *(len(table) * column.stride for column in columns)]).tolist()
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": len(table) * column.stride, "byteStride": column.stride,
         "target": 34962}
        for offset, column in zip(offsets, columns, strict=False)
    ]  # fmt: skip
    return {
        "asset": {"version": "2.0", "generator": MARK},
        "extensionsUsed": [EXTENSION] if meshes else [],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": meshes,
        "accessors": accessors,
        "bufferViews": views,
        "animations": [],
    }


def _accessor(column: _Column, view: int, start: int, end: int) -> dict[str, Any]:
    entry = {"bufferView": view, "byteOffset": start * column.stride, "componentType": column.component,
             "count": end - start, "type": column.kind}  # fmt: skip
    return entry if column.component == 5126 else {**entry, "normalized": True}


def _add_animation(root: dict[str, Any], times: np.ndarray, moving: list[Motion]) -> bytes:
    """Put one animation into the JSON and return its key times and tracks as they stand in the buffer."""
    keys = (times - times[0]).astype("<f4")
    if (np.diff(keys) <= 0).any():
        raise InputError("the instants of the rollout are too close for glTF's float32 seconds; drop some of them.")
    blocks = [keys.tobytes()]
    samplers: list[dict[str, Any]] = []
    channels: list[dict[str, Any]] = []
    view, offset = len(root["bufferViews"]), sum(each["byteLength"] for each in root["bufferViews"])
    accessors = root["accessors"]
    clock = len(accessors)
    accessors.append({"bufferView": view, "byteOffset": 0, "componentType": 5126, "count": len(keys), "type": "SCALAR",
                      "min": [float(keys[0])], "max": [float(keys[-1])]})  # fmt: skip
    for link, places, quats in moving:
        xyzw = None if quats is None else np.roll(quats, -1, axis=1)
        for path, kind, values in (("translation", "VEC3", places), ("rotation", "VEC4", xyzw)):
            if values is None:
                continue
            accessors.append({"bufferView": view, "byteOffset": sum(map(len, blocks)), "componentType": 5126,
                              "count": len(keys), "type": kind})  # fmt: skip
            blocks.append(values.astype("<f4").tobytes())
            channels.append({"sampler": len(samplers), "target": {"node": link + 1, "path": path}})
            samplers.append({"input": clock, "output": len(accessors) - 1, "interpolation": "LINEAR"})
    data = b"".join(blocks)
    root["bufferViews"].append({"buffer": 0, "byteOffset": offset, "byteLength": len(data)})
    mark = {"start": float(times[0])}
    root["animations"] = [{"name": "rollout", "samplers": samplers, "channels": channels, "extras": {MARK: mark}}]
    return data
