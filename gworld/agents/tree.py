"""The kinematic tree of a robot as plain data: links, joints, shapes, masses. What URDF and MJCF are read into.

A link stands at `parent_from_link` before its parent when its joints are at their reference; its joints move it from
there, in the order in which they are listed. Numbers are float64, lengths in metres, angles in radians.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from gworld.errors import InputError

JointKind = Literal["revolute", "continuous", "prismatic", "ball", "free"]
WIDTHS: dict[JointKind, int] = {"revolute": 1, "continuous": 1, "prismatic": 1, "ball": 4, "free": 7}
"""Values of one joint: an angle, a length, a quaternion `wxyz`, or a pose `x y z qw qx qy qz`."""
ShapeKind = Literal["mesh", "box", "sphere", "cylinder", "capsule", "ellipsoid", "plane"]


@dataclass(frozen=True, eq=False)
class Inertial:
    """Mass in kg, centre of mass [3] in the link's frame, inertia [3,3] kg m^2 about it, in the link's axes."""

    mass: float
    com: np.ndarray
    inertia: np.ndarray


@dataclass(frozen=True, eq=False)
class Body:
    """A rigid link: its name, its parent's index (-1 for the root), `parent_from_link [4,4]`, its mass if known."""

    name: str
    parent: int
    parent_from_link: np.ndarray
    inertial: Inertial | None = None


@dataclass(frozen=True)
class Mimic:
    """A joint that follows another: value = multiplier * value of `joint` + offset."""

    joint: str
    multiplier: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Joint:
    """What moves link `link` against its parent.

    Turning joints turn about the unit `axis [3]` through `anchor [3]`, sliding ones move along it, both in the frame
    that the link has at the reference; at the value `reference` they displace nothing. A ball turns about the anchor; a
    free joint is the link's pose in its parent, whatever `parent_from_link` says. `low` and `high` bound the value
    (infinite where there is no bound), `velocity` its change per second, `effort` force or torque. `default` is the
    value at rest.
    """

    name: str
    kind: JointKind
    link: int
    axis: np.ndarray
    anchor: np.ndarray
    default: tuple[float, ...]
    low: float = -math.inf
    high: float = math.inf
    velocity: float = math.inf
    effort: float = math.inf
    reference: float = 0.0
    mimic: Mimic | None = None


@dataclass(frozen=True, eq=False)
class Surface:
    """Triangles: vertices [V,3] metres, faces [F,3], colours per corner.

    Colours are `texture [H,W,3]` uint8 at `uv [F,3,2]` (origin bottom left, repeating) where there is one, else
    `rgb [F,3,3]` in 0..1; with neither, the shape's own colour holds.
    """

    vertices: np.ndarray
    faces: np.ndarray
    rgb: np.ndarray | None = None
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Shape:
    """What a link looks like, or collides with when `collision`.

    `size`: edge lengths of a box, radius of a sphere, (radius, length) of a cylinder or capsule along z, radii of an
    ellipsoid, edge lengths of a plane, scale [3] of a mesh. A mesh is a file, or a `surface` that is there already.
    rgba in 0..1; `link_from_shape [4,4]`.
    """

    link: int
    kind: ShapeKind
    size: tuple[float, ...]
    link_from_shape: np.ndarray
    rgba: tuple[float, float, float, float] | None = None
    mesh: Path | None = None
    surface: Surface | None = None
    collision: bool = False


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A robot: links (parents first, the root at 0), joints, shapes, and the files it was read from.

    `meshes` are the names that a URDF gives its meshes, with the files they meant; an MJCF has none.
    """

    name: str
    links: tuple[Body, ...]
    joints: tuple[Joint, ...] = ()
    shapes: tuple[Shape, ...] = ()
    path: Path | None = None
    files: tuple[Path, ...] = ()
    meshes: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [link.name for link in self.links]
        joints = [joint.name for joint in self.joints]
        for kind, known in (("links", names), ("joints", joints)):
            if len(set(known)) != len(known):
                twice = next(name for name in known if known.count(name) > 1)
                raise InputError(f"robot `{self.name}` has two {kind} called `{twice}`; their names must differ.")
        for index, link in enumerate(self.links):
            if not (-1 if index == 0 else 0) <= link.parent < max(index, 0):
                raise InputError(f"robot `{self.name}`: link `{link.name}` does not stand after its parent.")
        by_name = {joint.name: joint for joint in self.joints}
        for joint in self.joints:
            followed = by_name.get(joint.mimic.joint) if joint.mimic else None
            if joint.mimic and (followed is None or followed.mimic or WIDTHS[followed.kind] != 1):
                raise InputError(
                    f"robot `{self.name}`: joint `{joint.name}` follows `{joint.mimic.joint}`, which is not a joint "
                    "with one value of its own."
                )

    @property
    def free_joints(self) -> tuple[Joint, ...]:
        """The joints with values of their own: all but those that follow another. Their order is that of the values."""
        return tuple(joint for joint in self.joints if joint.mimic is None)


def link_index(skeleton: Skeleton, name: str) -> int:
    """The index of the link of that name; raises `InputError` when there is none."""
    for index, link in enumerate(skeleton.links):
        if link.name == name:
            return index
    known = ", ".join(link.name for link in skeleton.links[:12])
    raise InputError(f"robot `{skeleton.name}` has no link `{name}`; it has {known}.")


def value_slots(skeleton: Skeleton) -> dict[str, slice]:
    """Where each joint with values of its own stands in a vector of joint values."""
    slots, start = {}, 0
    for joint in skeleton.free_joints:
        slots[joint.name] = slice(start, start + WIDTHS[joint.kind])
        start += WIDTHS[joint.kind]
    return slots


def subtree(skeleton: Skeleton, root: str, name: str | None = None) -> Skeleton:
    """The part of a robot from link `root` on, standing at the identity: one arm of a file that holds two.

    A joint that moves `root` itself stays only if it is free (a mobile base keeps its own). A joint that follows one
    outside becomes independent. Raises `InputError` for an unknown link.
    """
    first = link_index(skeleton, root)
    keep = [first]
    for index in range(first + 1, len(skeleton.links)):
        if skeleton.links[index].parent in keep:
            keep.append(index)
    new = {old: index for index, old in enumerate(keep)}
    links = [replace(skeleton.links[old], parent=new.get(skeleton.links[old].parent, -1)) for old in keep]
    links[0] = replace(links[0], parent_from_link=np.eye(4))
    joints = [
        replace(joint, link=new[joint.link])
        for joint in skeleton.joints
        if joint.link in new and (joint.link != first or joint.kind == "free")
    ]
    inside = {joint.name for joint in joints}
    joints = [replace(j, mimic=j.mimic if j.mimic and j.mimic.joint in inside else None) for j in joints]
    shapes = [replace(shape, link=new[shape.link]) for shape in skeleton.shapes if shape.link in new]
    return replace(skeleton, name=name or root, links=tuple(links), joints=tuple(joints), shapes=tuple(shapes))


def order_links(parents: Sequence[int]) -> list[int]:
    """An order in which parents come before children, given each one's parent (-1 for roots).

    Raises `InputError` for a circle.
    """
    children: dict[int, list[int]] = {}
    for index, parent in enumerate(parents):
        children.setdefault(parent, []).append(index)
    order = list(children.get(-1, ()))
    for index in order:  # grows while it is read: breadth first
        order.extend(children.get(index, ()))
    if len(order) != len(parents):
        raise InputError(f"{len(parents) - len(order)} links hang in a circle of joints; a tree is needed.")
    return order


def settle_mimics(joints: Sequence[Joint]) -> tuple[Joint, ...]:
    """Let a joint that follows a follower follow its leader instead; circles are left for `Skeleton` to refuse."""
    known = {joint.name: joint for joint in joints}
    settled = []
    for joint in joints:
        mimic, seen = joint.mimic, {joint.name}
        while mimic and mimic.joint in known and mimic.joint not in seen:
            seen.add(mimic.joint)
            onward = known[mimic.joint].mimic
            if onward is None:
                break
            factor = mimic.multiplier
            mimic = Mimic(onward.joint, factor * onward.multiplier, factor * onward.offset + mimic.offset)
        settled.append(replace(joint, mimic=mimic))
    return tuple(settled)
