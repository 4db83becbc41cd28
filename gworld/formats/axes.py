"""Moving whole tables: other axes, similarity transforms, and links baked into the world. Plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gworld.errors import InputError
from gworld.formats.table import IDENTITY_POSE, Axes, Link, SplatTable
from gworld.scene.harmonics import sh_rotation

# Coordinates in other axes of a point given in Right/Down/Forward: signed permutations, all proper rotations.
FROM_RDF: dict[Axes, np.ndarray] = {
    "RDF": np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "RUB": np.array([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]]),
    "RFU": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
}


def axes_rotation(source: Axes | None, target: Axes) -> np.ndarray:
    """Rotation [3,3] that takes coordinates in `source` axes to `target` axes; None counts as RDF."""
    return FROM_RDF[target] @ FROM_RDF[source or "RDF"].T


def to_axes(table: SplatTable, axes: Axes) -> SplatTable:
    """The same scene with its coordinates expressed in other axes.

    A table without axes counts as RDF, the habit of 3DGS PLY files. Link 0 (the world) is re-expressed row by row; the
    Gaussians of other links stay as they are in their frames, and the links' rest poses carry the change. Between RDF
    and RUB every value is only negated, so there and back is exact.
    """
    return replace(rotate_table(table, axes_rotation(table.axes, axes)), axes=axes)


def rotate_table(
    table: SplatTable,
    rotation: np.ndarray,
    translation: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
    scale: float = 1.0,
) -> SplatTable:
    """Move the whole scene by the similarity `x -> scale * rotation @ x + translation`.

    rotation [3,3], translation [3] in the table's units, scale > 0. Link frames stay rigid: their rest poses take the
    rotation and translation, their Gaussians the scale. Raises `InputError` when `rotation` is not a proper rotation.
    """
    turn, shift = np.asarray(rotation, np.float64), np.asarray(translation, np.float64)
    proper = turn.shape == (3, 3) and np.allclose(turn @ turn.T, np.eye(3), atol=1e-5) and np.linalg.det(turn) > 0
    if not (proper and shift.shape == (3,) and np.isfinite(shift).all() and np.isfinite(scale) and scale > 0):
        raise InputError(
            f"the transform with rotation {turn.tolist()}, translation {shift.tolist()} and scale {scale} does not "
            "keep shapes; a proper rotation matrix [3,3], a finite translation [3] and a scale above 0 are needed."
        )
    quat = quat_from_matrix(turn)
    if scale != 1.0:
        log_scales = table.log_scales + np.float32(np.log(scale))
        table = replace(table, means=table.means * np.float32(scale), log_scales=log_scales)
    links = [table.link_table[0]]
    for link in table.link_table[1:]:
        place = scale * turn @ np.asarray(link.pose[:3]) + shift
        facing = multiply_quats(quat, np.asarray(link.pose[3:]))
        links.append(Link(link.name, (*place.tolist(), *facing.tolist()), link.parent))
    table = replace(table, link_table=tuple(links))
    return _move_rows(table, _rows_of(table, 0), quat, shift)


def bake_links(table: SplatTable) -> SplatTable:
    """Move every link's Gaussians into the world by its rest pose; one link, the world, is left."""
    for index, link in enumerate(table.link_table):
        if tuple(link.pose) != IDENTITY_POSE:
            pose = np.asarray(link.pose, np.float64)
            table = _move_rows(table, _rows_of(table, index), pose[3:] / np.linalg.norm(pose[3:]), pose[:3])
    world = Link(table.link_table[0].name)
    return replace(table, links=np.zeros(len(table), np.int32), link_table=(world,))


def multiply_quats(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Hamilton products [...,4] of wxyz quaternions: `right` turns first."""
    aw, ax, ay, az = np.moveaxis(left, -1, 0)
    bw, bx, by, bz = np.moveaxis(right, -1, 0)
    terms = (
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    )
    return np.stack(terms, axis=-1)


def quat_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Unit wxyz quaternion [4] of a rotation matrix [3,3].

    The largest component comes from a square root and the others from it (Shepperd, J. Guidance and Control 1978).
    """
    m, trace = rotation, float(np.trace(rotation))
    squares = np.array([trace, m[0, 0], m[1, 1], m[2, 2]]) * 2 + (1 - trace)  # four times each component squared
    squares[0] = 1 + trace
    rows = np.array(
        [
            [squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], squares[1], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], squares[2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[3]],
        ]
    )
    row = rows[int(np.argmax(squares))]
    return row / np.linalg.norm(row)


def matrix_from_quat(quat_wxyz: np.ndarray) -> np.ndarray:
    """Rotation matrices [...,3,3] of unit wxyz quaternions [...,4]."""
    w, x, y, z = np.moveaxis(quat_wxyz, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotate_sh_rows(sh: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Coefficients [N,K,3] of bodies turned by one `rotation` [3,3], for millions of rows.

    Half turns about an axis only change signs and are exact; any other rotation is one product over flattened rows.
    """
    count, terms, _ = sh.shape
    if terms == 1:
        return sh
    matrix = sh_rotation(rotation, {4: 1, 9: 2, 16: 3}[terms])
    signs = np.rint(np.diagonal(matrix))
    if np.abs(matrix - np.diag(signs)).max() < 1e-9:
        return sh * signs.astype(sh.dtype)[:, None]
    channels = np.kron(matrix, np.eye(3)).astype(sh.dtype)
    return (sh.reshape(count, terms * 3) @ channels.T).reshape(sh.shape)


def _rows_of(table: SplatTable, link: int) -> slice | np.ndarray:
    """Rows of one link; a slice when it owns them all, so that nothing is gathered."""
    if len(table.link_table) == 1:
        return slice(None)
    return np.flatnonzero(table.links == link)


def _move_rows(table: SplatTable, rows: slice | np.ndarray, quat: np.ndarray, shift: np.ndarray) -> SplatTable:
    """The table with some rows turned by a unit quaternion, then shifted."""
    turn = matrix_from_quat(quat)
    nearest = np.rint(turn)
    if np.abs(turn - nearest).max() < 1e-12:  # a signed permutation: keep it exact
        turn = nearest
    means = table.means[rows]
    if not np.array_equal(turn, np.eye(3)):
        means = means @ turn.T.astype(np.float32)
        quats = _turn_quats(table.quats_wxyz[rows], quat.astype(np.float32), turn)
        sh = rotate_sh_rows(table.sh[rows], turn)
        table = replace(table, quats_wxyz=_placed(table.quats_wxyz, rows, quats), sh=_placed(table.sh, rows, sh))
    if shift.any():
        means = (means + shift).astype(np.float32)
    return replace(table, means=_placed(table.means, rows, means))


def _turn_quats(quats: np.ndarray, quat: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Rotations of turned Gaussians.

    After a half turn about a coordinate axis the ellipsoid's own two other axes are reversed as well: the same
    Gaussian, every component exact, and the quaternions that other tools write (w, x, -y, -z between RDF and RUB).
    """
    signs = np.diagonal(turn)
    if np.array_equal(np.abs(turn), np.eye(3)):
        return quats * np.array([1, *signs], np.float32)
    return multiply_quats(quat, quats)


def _placed(column: np.ndarray, rows: slice | np.ndarray, values: np.ndarray) -> np.ndarray:
    if isinstance(rows, slice):
        return values
    result = column.copy()
    result[rows] = values
    return result
