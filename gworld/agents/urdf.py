"""URDF files into kinematic trees: a strict reader that opens nothing outside the robot's folders.

Source: the ROS URDF specification (links, joints, mimic, `package://`); angles are fixed-axis roll, pitch, yaw.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from gworld.agents.tree import (
    Body,
    Inertial,
    Joint,
    JointKind,
    Mimic,
    Shape,
    ShapeKind,
    Skeleton,
    order_links,
    settle_mimics,
)
from gworld.agents.xml import numbers, read_xml
from gworld.errors import InputError
from gworld.files import safe_join

RGBA = tuple[float, float, float, float]
KINDS: dict[str, JointKind] = {
    "revolute": "revolute",
    "continuous": "continuous",
    "prismatic": "prismatic",
    "floating": "free",
}


@dataclass(frozen=True)
class _Source:
    """The file being read, the folders it may name files in, the materials it defined."""

    path: Path
    folders: tuple[Path, ...]
    materials: dict[str, RGBA]


def read_urdf(path: str | Path, name: str, folders: Sequence[str | Path] = ()) -> Skeleton:
    """Read a URDF.

    Meshes may lie in the file's own folder or in `folders`; `package://robot/meshes/a.stl` is `meshes/a.stl` or
    `robot/meshes/a.stl` in one of them. A planar joint becomes two sliding ones and a turning one. Raises `InputError`
    naming the file and the element for anything damaged, missing or outside these folders.
    """
    file = Path(path)
    root = read_xml(file)
    if root.tag != "robot":
        raise InputError(f"`{file}` starts with <{root.tag}>; a URDF starts with <robot>.")
    materials = {m.get("name", ""): rgba for m in root.findall("material") if (rgba := _rgba(m, file)) is not None}
    source = _Source(file, (file.parent, *map(Path, folders)), materials)
    links = root.findall("link")
    index = {_name(link, file): position for position, link in enumerate(links)}
    if not links or len(index) != len(links):
        raise InputError(f"`{file}` has {len(links)} links with {len(index)} different names; one name each is needed.")
    above: dict[int, Element] = {}
    for joint in root.findall("joint"):
        child = _end(joint, "child", index, file)
        if child in above:
            raise InputError(f"`{file}`: two joints move the link `{links[child].get('name')}`; a tree is needed.")
        above[child] = joint
    parents = [_end(above[i], "parent", index, file) if i in above else -1 for i in range(len(links))]
    if parents.count(-1) != 1:
        raise InputError(f"`{file}` has {parents.count(-1)} links without a parent; exactly one root is needed.")
    order = order_links(parents)
    new = {old: position for position, old in enumerate(order)}
    bodies, joints, shapes = [], [], []
    for position, old in enumerate(order):
        origin = np.eye(4) if old not in above else _origin(above[old], file)
        parent = -1 if parents[old] < 0 else new[parents[old]]
        bodies.append(Body(_name(links[old], file), parent, origin, _inertial(links[old], file)))
        if old in above:
            joints += _joints(above[old], position, file)
        shapes += _shapes(links[old], position, source)
    names = dict.fromkeys(mesh.get("filename", "") for mesh in root.iter("mesh"))
    meshes = {known: find_mesh(known, file, source.folders) for known in names}
    files = (file, *meshes.values())
    return Skeleton(name, tuple(bodies), settle_mimics(joints), tuple(shapes), file, files, meshes)


def find_mesh(name: str, file: Path, folders: Sequence[Path]) -> Path:
    """The file that a URDF's mesh name means; raises `InputError` when it is missing or outside `folders`.

    Names are relative, `file://` relative, or `package://`. Nothing is fetched.
    """
    scheme, _, rest = name.rpartition("://")
    if scheme not in ("", "package", "file", "model"):
        raise InputError(f"`{file}` names the mesh {name!r}; only files beside it or package:// names are opened.")
    plain = rest.removeprefix("./")
    tries = [plain]
    if scheme in ("package", "model"):
        tries = [plain.partition("/")[2], plain]
    for folder in folders:
        for candidate in tries:
            try:
                found = safe_join(folder, candidate)
            except InputError as error:
                raise InputError(f"`{file}`: {error} Give the folder it lies in, and a name within it.") from error
            if found.is_file():
                return found
    raise InputError(
        f"`{file}` names the mesh {name!r}, which is not in {', '.join(f'`{folder}`' for folder in folders)}. "
        "Name the folder of its package."
    )


def _name(element: Element, file: Path) -> str:
    name = element.get("name", "")
    if not name:
        raise InputError(f"`{file}` has a <{element.tag}> without a name; each needs one.")
    return name


def _end(joint: Element, which: str, index: dict[str, int], file: Path) -> int:
    element = joint.find(which)
    link = "" if element is None else element.get("link", "")
    if link not in index:
        raise InputError(f"`{file}`: joint `{joint.get('name')}` has the {which} {link!r}, which is no link of it.")
    return index[link]


def _origin(element: Element | None, file: Path) -> np.ndarray:
    """The [4,4] transform of an element's <origin>, the identity where there is none."""
    origin = None if element is None else element.find("origin")
    transform = np.eye(4)
    if origin is None:
        return transform
    transform[:3, 3] = numbers(origin.get("xyz"), 3, str(file), "an origin's xyz", (0.0, 0.0, 0.0))
    roll, pitch, yaw = numbers(origin.get("rpy"), 3, str(file), "an origin's rpy", (0.0, 0.0, 0.0))
    (sr, sp, sy), (cr, cp, cy) = np.sin([roll, pitch, yaw]), np.cos([roll, pitch, yaw])
    transform[:3, :3] = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return transform


def _number(element: Element | None, key: str, default: float, file: Path) -> float:
    text = None if element is None else element.get(key)
    return numbers(text, 1, str(file), f"`{key}`", (default,))[0]


def _inertial(link: Element, file: Path) -> Inertial | None:
    element = link.find("inertial")
    if element is None:
        return None
    origin = _origin(element, file)
    inertia = element.find("inertia")
    xx, xy, xz, yy, yz, zz = (_number(inertia, key, 0.0, file) for key in ("ixx", "ixy", "ixz", "iyy", "iyz", "izz"))
    tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    mass = _number(element.find("mass"), "value", 0.0, file)
    if mass < 0:
        raise InputError(f"`{file}`: link `{link.get('name')}` weighs {mass} kg; a mass of 0 or more is needed.")
    return Inertial(mass, origin[:3, 3], origin[:3, :3] @ tensor @ origin[:3, :3].T)


def _joints(element: Element, link: int, file: Path) -> list[Joint]:
    """The joints of one <joint>: none when it is fixed, three when it is planar."""
    name, kind = _name(element, file), element.get("type", "")
    axis_element = element.find("axis")
    axis_text = None if axis_element is None else axis_element.get("xyz")
    axis = np.array(numbers(axis_text, 3, str(file), f"the axis of `{name}`", (1.0, 0.0, 0.0)))
    length = float(np.linalg.norm(axis))
    if kind == "fixed":
        return []
    if length < 1e-9:
        raise InputError(f"`{file}`: joint `{name}` has the axis 0 0 0; a direction is needed.")
    axis = axis / length
    zero = np.zeros(3)
    if kind == "planar":
        side = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
        side /= np.linalg.norm(side)
        slides = [Joint(f"{name}/{key}", "prismatic", link, along, zero, (0.0,)) for key, along in
                  (("x", side), ("y", np.cross(axis, side)))]  # fmt: skip
        return [*slides, Joint(f"{name}/turn", "continuous", link, axis, zero, (0.0,))]
    if kind not in KINDS:
        raise InputError(f"`{file}`: joint `{name}` has the type {kind!r}; {', '.join(KINDS)}, planar or fixed is.")
    if kind == "floating":
        return [Joint(name, "free", link, axis, zero, (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))]
    limit, bounded = element.find("limit"), kind in ("revolute", "prismatic")
    low = _number(limit, "lower", 0.0, file) if bounded and limit is not None else -math.inf
    high = _number(limit, "upper", 0.0, file) if bounded and limit is not None else math.inf
    if not low <= high:
        raise InputError(f"`{file}`: joint `{name}` has limits {low} .. {high}; the lower one must come first.")
    mimic_element = element.find("mimic")
    mimic = None
    if mimic_element is not None:
        followed = mimic_element.get("joint", "")
        mimic = Mimic(
            followed, _number(mimic_element, "multiplier", 1.0, file), _number(mimic_element, "offset", 0.0, file)
        )
    # A limit of zero speed or force is a common way to leave it out.
    velocity, effort = (_number(limit, key, 0.0, file) or math.inf for key in ("velocity", "effort"))
    rest = (min(max(0.0, low), high),)
    return [Joint(name, KINDS[kind], link, axis, zero, rest, low, high, abs(velocity), abs(effort), 0.0, mimic)]


def _rgba(material: Element | None, file: Path) -> RGBA | None:
    color = None if material is None else material.find("color")
    if color is None:
        return None
    red, green, blue, alpha = numbers(color.get("rgba"), 4, str(file), "a colour", (1.0, 1.0, 1.0, 1.0))
    return red, green, blue, alpha


def _shapes(link: Element, position: int, source: _Source) -> list[Shape]:
    shapes = []
    for element in (*link.findall("visual"), *link.findall("collision")):
        geometry = element.find("geometry")
        inner = None if geometry is None or len(geometry) == 0 else geometry[0]
        if inner is None:
            raise InputError(f"`{source.path}`: link `{link.get('name')}` has a <{element.tag}> without geometry.")
        material = element.find("material")
        rgba = _rgba(material, source.path)
        if rgba is None and material is not None:
            rgba = source.materials.get(material.get("name", ""))
        kind, size, mesh = _geometry(inner, link, source)
        origin = _origin(element, source.path)
        shapes.append(Shape(position, kind, size, origin, rgba, mesh, None, element.tag == "collision"))
    return shapes


def _geometry(inner: Element, link: Element, source: _Source) -> tuple[ShapeKind, tuple[float, ...], Path | None]:
    file = source.path
    if inner.tag == "mesh":
        scale = numbers(inner.get("scale"), 3, str(file), "a mesh's scale", (1.0, 1.0, 1.0))
        return "mesh", scale, find_mesh(inner.get("filename", ""), file, source.folders)
    keys = {"box": ("size",), "sphere": ("radius",), "cylinder": ("radius", "length"), "capsule": ("radius", "length")}
    if inner.tag not in keys:
        raise InputError(f"`{file}`: link `{link.get('name')}` has the shape <{inner.tag}>, which is not known.")
    size: tuple[float, ...] = ()
    for key in keys[inner.tag]:
        count = 3 if inner.tag == "box" else 1
        size += numbers(inner.get(key, ""), count, str(file), f"`{key}` of a {inner.tag}", ())
    if min(size) <= 0:
        raise InputError(f"`{file}`: link `{link.get('name')}` has a {inner.tag} of size {size}; above 0 is needed.")
    kind: ShapeKind = inner.tag  # type: ignore[assignment]  # the table above holds shape names only
    return kind, size, None
