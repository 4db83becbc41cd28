"""Robot models, URDF or MJCF, into one plain kinematic tree. The only file here that knows MuJoCo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gworld.agents.mjcf import check_mjcf
from gworld.agents.tree import (
    Body,
    Inertial,
    Joint,
    JointKind,
    Mimic,
    Shape,
    ShapeKind,
    Skeleton,
    Surface,
    settle_mimics,
)
from gworld.agents.urdf import read_urdf
from gworld.agents.xml import read_xml
from gworld.errors import InputError, MissingBackendError

if TYPE_CHECKING:
    import mujoco

__all__ = ["Skeleton", "read_mjcf", "read_robot"]

HIDDEN_GROUP = 3
"""Geoms of this group and above are collision shapes by MuJoCo's habit; its viewer hides them."""
DEFAULT_RGBA = (0.5, 0.5, 0.5, 1.0)
IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


def read_robot(path: str | Path, name: str, folders: Sequence[str | Path] = ()) -> Skeleton:
    """Read a robot model, URDF or MJCF, told apart by its first element.

    Files it names (meshes, textures, included models) must lie in its own folder or in `folders`. Raises `InputError`
    for a model that is damaged or reaches outside, `MissingBackendError` when MJCF is read without MuJoCo.
    """
    root = read_xml(path)
    if root.tag == "robot":
        return read_urdf(path, name, folders)
    if root.tag == "mujoco":
        return read_mjcf(path, name, folders)
    raise InputError(f"`{path}` starts with <{root.tag}>; a robot starts with <robot> (URDF) or <mujoco> (MJCF).")


def read_mjcf(path: str | Path, name: str, folders: Sequence[str | Path] = ()) -> Skeleton:
    """Read an MJCF as MuJoCo compiles it; link 0 is its worldbody.

    Joint values and their order are those of MuJoCo's `qpos`, but for joints tied to another by a linear equality,
    which follow it. Rest values are those of the first keyframe, else `qpos0`. Shapes are the visible geoms (groups 0
    to 2, alpha above 0) and, as collision shapes, the hidden ones. Heightfields, infinite planes, tendons and soft
    bodies are left out.
    """
    try:
        import mujoco
    except ImportError as error:
        raise MissingBackendError("MJCF models need MuJoCo: pip install 'gworld[sim]', or give a URDF.") from error
    file = Path(path)
    files = check_mjcf(file, [Path(folder) for folder in folders])
    try:
        model = mujoco.MjModel.from_xml_path(str(file))
    except (ValueError, mujoco.FatalError, UnicodeDecodeError, MemoryError) as error:
        fact = " ".join(str(error).split())[:300]
        raise InputError(f"`{file}` is refused by MuJoCo: {fact}. Mend the model.") from error
    bodies = tuple(_body(model, index) for index in range(model.nbody))
    shapes = tuple(shape for index in range(model.ngeom) if (shape := _shape(model, index)) is not None)
    return Skeleton(name, bodies, settle_mimics(_joints(model, mujoco)), shapes, file, files)


def _pose(position: np.ndarray, quat_wxyz: np.ndarray) -> np.ndarray:
    w, x, y, z = quat_wxyz / max(float(np.linalg.norm(quat_wxyz)), 1e-12)
    transform = np.eye(4)
    transform[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    transform[:3, 3] = position
    return transform


def _body(model: mujoco.MjModel, index: int) -> Body:
    principal = _pose(model.body_ipos[index], model.body_iquat[index])
    inertia = principal[:3, :3] @ np.diag(model.body_inertia[index]) @ principal[:3, :3].T
    mass = float(model.body_mass[index])
    parent = int(model.body_parentid[index]) if index else -1
    name = model.body(index).name or f"body{index}"
    return Body(
        name,
        parent,
        _pose(model.body_pos[index], model.body_quat[index]),
        Inertial(mass, principal[:3, 3].copy(), inertia) if mass > 0 else None,
    )


def _joints(model: mujoco.MjModel, mujoco: Any) -> list[Joint]:
    kinds: dict[int, JointKind] = {
        int(mujoco.mjtJoint.mjJNT_FREE): "free",
        int(mujoco.mjtJoint.mjJNT_BALL): "ball",
        int(mujoco.mjtJoint.mjJNT_SLIDE): "prismatic",
        int(mujoco.mjtJoint.mjJNT_HINGE): "revolute",
    }
    rest = model.key_qpos[0] if model.nkey else model.qpos0
    followers = _followers(model, mujoco)
    joints = []
    for index in range(model.njnt):
        kind, start = kinds[int(model.jnt_type[index])], int(model.jnt_qposadr[index])
        low, high = -math.inf, math.inf
        if model.jnt_limited[index] and kind in ("revolute", "prismatic"):
            low, high = map(float, model.jnt_range[index])
        elif kind == "revolute":
            kind = "continuous"
        width = {"ball": 4, "free": 7}.get(kind, 1)
        joints.append(
            Joint(
                name=_joint_name(model, index),
                kind=kind,
                link=int(model.jnt_bodyid[index]),
                axis=model.jnt_axis[index].copy(),
                anchor=model.jnt_pos[index].copy(),
                default=tuple(map(float, rest[start : start + width])),
                low=low,
                high=high,
                effort=float(model.jnt_actfrcrange[index][1]) if model.jnt_actfrclimited[index] else math.inf,
                reference=float(model.qpos0[start]) if width == 1 else 0.0,
                mimic=followers.get(index),
            )
        )
    return joints


def _joint_name(model: mujoco.MjModel, index: int) -> str:
    return model.joint(index).name or f"joint{index}"


def _followers(model: mujoco.MjModel, mujoco: Any) -> dict[int, Mimic]:
    """Joints that an active, linear equality ties to another one."""
    followers: dict[int, Mimic] = {}
    scalar = (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    for index in range(model.neq):
        first, second = int(model.eq_obj1id[index]), int(model.eq_obj2id[index])
        if model.eq_type[index] != mujoco.mjtEq.mjEQ_JOINT or second < 0 or not model.eq_active0[index]:
            continue
        constant, slope, *curved = map(float, model.eq_data[index][:5])
        plain = model.jnt_type[first] in scalar and model.jnt_type[second] in scalar
        if any(curved) or not plain or first in followers:
            continue
        reference = [float(model.qpos0[model.jnt_qposadr[joint]]) for joint in (first, second)]
        offset = reference[0] + constant - slope * reference[1]
        followers[first] = Mimic(_joint_name(model, second), slope, offset)
    return followers


def _shape(model: mujoco.MjModel, index: int) -> Shape | None:
    """A geom, or None for one that is infinite, invisible or of a kind that has no surface here."""
    rgba, texture, is_image, repeat = _paint(model, index)
    a, b, c = map(float, model.geom_size[index])
    kinds: dict[int, tuple[ShapeKind, tuple[float, ...]]] = {
        0: ("plane", (2 * a, 2 * b)),
        2: ("sphere", (a,)),
        3: ("capsule", (a, 2 * b)),
        4: ("ellipsoid", (a, b, c)),
        5: ("cylinder", (a, 2 * b)),
        6: ("box", (2 * a, 2 * b, 2 * c)),
        7: ("mesh", (1.0, 1.0, 1.0)),
    }
    kind, size = kinds.get(int(model.geom_type[index]), (None, ()))
    if kind is None or rgba[3] == 0.0 or min(size) <= 0.0:
        return None
    surface = None
    if kind == "mesh":
        surface = _surface(model, int(model.geom_dataid[index]), texture if is_image else None, repeat, rgba)
    if texture is not None and (surface is None or surface.texture is None):  # no coordinates: the mean colour
        mean = texture.reshape(-1, 3).mean(axis=0) / 255.0
        rgba = (rgba[0] * float(mean[0]), rgba[1] * float(mean[1]), rgba[2] * float(mean[2]), rgba[3])
    pose = _pose(model.geom_pos[index], model.geom_quat[index])
    hidden = int(model.geom_group[index]) >= HIDDEN_GROUP
    return Shape(int(model.geom_bodyid[index]), kind, size, pose, rgba, None, surface, hidden)


def _paint(
    model: mujoco.MjModel, index: int
) -> tuple[tuple[float, float, float, float], np.ndarray | None, bool, np.ndarray]:
    """A geom's colour, its texture if any, whether that is an image to be laid by coordinates, how often it repeats."""
    material = int(model.geom_matid[index])
    rgba = tuple(map(float, model.geom_rgba[index]))
    if material < 0:
        return rgba, None, False, np.ones(2)  # type: ignore[return-value]  # four numbers, as MuJoCo keeps them
    if rgba == DEFAULT_RGBA:
        rgba = tuple(map(float, model.mat_rgba[material]))
    ids = [int(i) for i in np.atleast_1d(model.mat_texid[material]) if i >= 0]
    if not ids:
        return rgba, None, False, np.ones(2)  # type: ignore[return-value]  # as above
    height, width, channels = (int(x[ids[0]]) for x in (model.tex_height, model.tex_width, model.tex_nchannel))
    start = int(model.tex_adr[ids[0]])
    pixels = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
    rgb = np.repeat(pixels, 3, axis=2) if channels < 3 else pixels[:, :, :3]
    is_image = int(model.tex_type[ids[0]]) == 0
    return rgba, rgb.copy(), is_image, model.mat_texrepeat[material].astype(float)  # type: ignore[return-value]  # as above


def _surface(
    model: mujoco.MjModel, mesh: int, texture: np.ndarray | None, repeat: np.ndarray, rgba: Sequence[float]
) -> Surface:
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    face, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    corners = int(model.mesh_texcoordadr[mesh])
    uv = None
    if texture is not None and corners >= 0:
        uv = model.mesh_texcoord[corners + model.mesh_facetexcoord[face : face + faces]].astype(np.float64)
        uv = uv * repeat
        uv[..., 1] = 1.0 - uv[..., 1]  # MuJoCo counts rows from the top
        texture = (texture * np.asarray(rgba[:3])).astype(np.uint8)
    return Surface(
        vertices=model.mesh_vert[first : first + count].astype(np.float64),
        faces=model.mesh_face[face : face + faces].astype(np.int64),
        uv=uv,
        texture=texture if uv is not None else None,
    )
