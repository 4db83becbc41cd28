"""Tables of splats to write as GLB, and GLB files taken apart and put together by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation
from scipy.special import expit

from gworld.formats.axes import matrix_from_quat
from gworld.formats.table import Link, SplatTable

UPRIGHT = {  # glTF's Left/Up/Forward coordinates of a point, written out by hand
    "RDF": np.diag([-1.0, -1, 1]),
    "RUB": np.diag([-1.0, 1, -1]),
    "RFU": np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
}


def make_table(count: int = 60, degree: int = 1, links: int = 1, axes: Any = "RFU", seed: int = 0) -> SplatTable:
    rng = np.random.default_rng(seed)
    quats = rng.normal(size=(count, 4))
    rest = [Link("world")]
    for index in range(1, links):
        turn = Rotation.from_rotvec(rng.normal(size=3)).as_quat()
        rest.append(Link(f"link {index}", (*rng.normal(size=3).tolist(), *turn[[3, 0, 1, 2]].tolist()), index - 2))
    return SplatTable(
        means=rng.normal(size=(count, 3)).astype(np.float32),
        quats_wxyz=(quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32),
        log_scales=rng.normal(-4, 1, (count, 3)).astype(np.float32),
        opacity_logits=rng.normal(0, 3, count).astype(np.float32),
        sh=rng.normal(0, 0.3, (count, (degree + 1) ** 2, 3)).astype(np.float32),
        links=np.sort(rng.integers(0, links, count)).astype(np.int32),
        axes=axes,
        metric=axes == "RFU",
        link_table=tuple(rest),
    )


def arm_motion(table: SplatTable, count: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """A two-link arm: the first link slides and turns by more than half a turn, the second turns, others rest."""
    times = 3.5 + np.cumsum(np.linspace(0.05, 0.2, count))
    poses = np.tile(np.array([link.pose for link in table.link_table]), (count, 1, 1))
    swing = Rotation.from_rotvec(np.linspace(0, 5, count)[:, None] * [0, 0.6, 0.8])
    poses[:, 1, :3] += np.linspace(0, 1, count)[:, None] * [0.5, -1, 2]
    for link in (1, 2):
        rest = Rotation.from_quat(poses[0, link, [4, 5, 6, 3]])
        poses[:, link, 3:] = (swing * rest).as_quat(canonical=True)[:, [3, 0, 1, 2]]  # canonical: the sign jumps
    return times, poses


def covariances(table: SplatTable) -> np.ndarray:
    quats = table.quats_wxyz.astype(np.float64)
    axes = matrix_from_quat(quats / np.linalg.norm(quats, axis=1, keepdims=True)) * np.exp(table.log_scales)[:, None]
    return axes @ axes.swapaxes(1, 2)


def assert_same(found: SplatTable, expected: SplatTable, atol: float = 0.0) -> None:
    np.testing.assert_allclose(found.means, expected.means, rtol=0, atol=atol)
    np.testing.assert_allclose(found.sh, expected.sh, rtol=0, atol=atol)
    np.testing.assert_allclose(found.log_scales, expected.log_scales, rtol=0, atol=1e-6)
    alphas = [expit(table.opacity_logits.astype(np.float64)) for table in (found, expected)]
    np.testing.assert_allclose(alphas[0], alphas[1], rtol=0, atol=1e-7)
    largest = np.abs(covariances(expected)).max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_less(np.abs(covariances(found) - covariances(expected)) / largest, 3e-6)


def split_glb(path: Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    count = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + count]), data[28 + count :]


def join_glb(path: Path, root: Any, binary: bytes, text: bytes | None = None) -> Path:
    text = json.dumps(root).encode() if text is None else text
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary)) + struct.pack("<I4s", len(text), b"JSON")
    path.write_bytes(head + text + struct.pack("<I4s", len(binary), b"BIN\0") + binary)
    return path
