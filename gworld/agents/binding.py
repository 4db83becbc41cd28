"""Robots and objects put into a world: new links, their Gaussians, an entity that owns them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gworld.agents.actions import Control, action_spec
from gworld.agents.kinematics import clamp_values, forward_kinematics, rest_values
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions, skin_robot, skin_surfaces
from gworld.agents.surfaces import MESH_SUFFIXES, mesh_files, read_surfaces, transform_surface
from gworld.agents.tree import Skeleton, link_index, subtree
from gworld.agents.xml import read_xml
from gworld.errors import InputError
from gworld.files import safe_join
from gworld.formats.registry import read
from gworld.formats.world import save_world
from gworld.geometry import pose_from_transform
from gworld.scene.gaussians import Gaussians, join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

Pose = Float[Tensor, "4 4"]
JOINT_TARGETS, PLAIN_SKIN = Control(), SkinOptions()


def agent_entity(
    skeleton: Skeleton, name: str, links: Sequence[int], action: Control | ActionSpec = JOINT_TARGETS
) -> Entity:
    """The agent that owns `links` of a world, with what it can be told and where its model will lie in `agents/`."""
    spec = action if isinstance(action, ActionSpec) else action_spec(skeleton, action)
    return Entity(name, "agent", tuple(links), spec, model_name(skeleton, name))


def bind_robot(
    world: World,
    skeleton: Skeleton,
    name: str,
    world_from_base: Pose,
    joints: Float[Tensor, " V"] | None = None,
    action: Control | ActionSpec = JOINT_TARGETS,
    skin: SkinOptions = PLAIN_SKIN,
) -> World:
    """The world with a robot in it: links `name/link`, Gaussians, an agent called `name` at rest.

    `world_from_base` is the pose of the robot's root; joint values are those of rest when None, and kept within their
    limits. Save it with `save_bound`, which takes the robot's files along. Raises `InputError` when the name is taken
    or the robot cannot be skinned.
    """
    _refuse_taken(world, name)
    values = rest_values(skeleton) if joints is None else joints
    poses = forward_kinematics(skeleton, clamp_values(skeleton, values.double()), world_from_base.double())
    first = len(world.links)
    stored = pose_from_transform(poses).tolist()
    links = tuple(
        Link(f"{name}/{link.name}", tuple(pose), 0 if link.parent < 0 else first + link.parent)
        for link, pose in zip(skeleton.links, stored, strict=True)
    )
    body = skin_robot(skeleton, skin)
    entity = agent_entity(skeleton, name, range(first, first + len(links)), action)
    return _add(world, replace(body, links=body.links + first), links, entity)


def bind_object(
    world: World,
    path: str | Path,
    name: str,
    world_from_object: Pose,
    *,
    scale: float = 1.0,
    skin: SkinOptions = PLAIN_SKIN,
) -> World:
    """The world with a rigid object from a mesh (obj, stl, dae, glb, off) or a splat file.

    A PLY with triangles is a mesh, one without is splats. `scale` turns the file's unit into metres. Raises
    `InputError` for a file that cannot be read, holds several links, or a name that is taken.
    """
    _refuse_taken(world, name)
    if not 1e-9 < scale < 1e9:
        raise InputError(f"a scale of {scale} was asked for `{path}`; a finite factor above 0 is needed.")
    file = Path(path)
    if file.suffix.lower() in MESH_SUFFIXES and not _holds_splats(file):
        surfaces = [transform_surface(part, torch.eye(4).numpy(), scale) for part in read_surfaces(file)]
        body = skin_surfaces(surfaces, f"`{file}`", skin)
    else:
        thing = read(file)
        if not isinstance(thing, Gaussians):
            raise InputError(f"`{file}` is a {type(thing).__name__}, not one object; a mesh or a splat file is needed.")
        shift = torch.log(torch.tensor(scale))
        body = replace(thing, means=thing.means * scale, log_scales=thing.log_scales + shift)
    place = len(world.links)
    link = Link(name, tuple(pose_from_transform(world_from_object.double()).tolist()), 0)
    body = replace(body, links=torch.full_like(body.links, place))
    return _add(world, body, (link,), Entity(name, "object", (place,)))


def cut_object(world: World, name: str, rows: Bool[Tensor, " N"], center: Float[Tensor, " 3"] | None = None) -> World:
    """The world with some of the static scene's Gaussians as an object of its own, where they are.

    `rows` marks them (`segment.rows_in_box`, `segment.rows_in_masks`); those of other links stay. The link stands at
    `center` (the middle of the Gaussians when None) with the world's axes. Raises `InputError` when no row is left.
    """
    _refuse_taken(world, name)
    if len(rows) != len(world.gaussians):
        raise InputError(f"{len(rows)} rows were marked; the world has {len(world.gaussians)} Gaussians.")
    chosen = rows & (world.gaussians.links == 0)
    if not bool(chosen.any()):
        raise InputError(f"no Gaussian of the static scene was chosen for `{name}`; choose another box or other masks.")
    means = world.gaussians.means
    if center is None:
        low, high = means[chosen].amin(0), means[chosen].amax(0)
        center = (low + high) / 2
    place = len(world.links)
    moved = replace(
        world.gaussians,
        means=torch.where(chosen[:, None], means - center.to(means), means),
        links=torch.where(chosen, torch.full_like(world.gaussians.links, place), world.gaussians.links),
    )
    link = Link(name, (*center.tolist(), 1.0, 0.0, 0.0, 0.0), 0)
    entity = Entity(name, "object", (place,))
    return replace(world, gaussians=moved, links=(*world.links, link), entities=(*world.entities, entity))


def agent_poses(
    world: World, skeleton: Skeleton, name: str, values: Float[Tensor, "*B V"], base: Float[Tensor, "*#B 4 4"]
) -> Float[Tensor, "*B L 4 4"]:
    """`world_from_link` of the whole world with agent `name` at other joint values and base, the rest at rest."""
    entity = next((entity for entity in world.agents if entity.name == name), None)
    if entity is None or len(entity.links) != len(skeleton.links):
        raise InputError(f"the world has no agent `{name}` with {len(skeleton.links)} links.")
    poses = forward_kinematics(skeleton, values, base)
    whole = world.rest_poses().to(poses).expand(*poses.shape[:-3], -1, 4, 4).clone()
    whole[..., list(entity.links), :, :] = poses
    return whole


def model_name(skeleton: Skeleton, name: str) -> str | None:
    """Where a robot's model lies in a world's `agents/`: in a folder with the agent's name."""
    if skeleton.path is None:
        return None
    return (Path(_folder(name)) / _model_place(skeleton)[1]).as_posix()


def save_bound(
    world: World,
    skeletons: Mapping[str, Skeleton],
    folder: str | Path,
    *,
    overwrite: bool = False,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a world folder with the models of newly bound robots (agent's name -> skeleton) in its `agents/`.

    A URDF is written with its mesh names made relative; an MJCF and its files keep their places among each other.
    `also` may write more into the folder before it appears. Raises `UsageError` when the folder exists and `overwrite`
    is False.
    """

    def add(place: Path) -> None:
        for name, skeleton in skeletons.items():
            _copy_model(skeleton, place / "agents" / _folder(name))
        if also is not None:
            also(place)

    save_world(world, folder, overwrite=overwrite, also=add)


def load_robot(world: World, name: str) -> Skeleton:
    """The skeleton of an agent of a world read from disk.

    Raises `InputError` when the world does not hold its model, or another one.
    """
    entity = next((entity for entity in world.agents if entity.name == name), None)
    if entity is None or entity.source is None or world.folder is None:
        raise InputError(f"the world holds no robot model of an agent `{name}`; bind it from a URDF or MJCF.")
    home = world.folder / "agents" / _folder(name)
    skeleton = read_robot(safe_join(world.folder / "agents", entity.source), name, [home])
    wanted = [world.links[index].name.removeprefix(f"{name}/") for index in entity.links]
    if [link.name for link in skeleton.links] != wanted:
        link_index(skeleton, wanted[0])
        skeleton = subtree(skeleton, wanted[0], name)
    if [link.name for link in skeleton.links] != wanted:
        raise InputError(
            f"the model `{entity.source}` of agent `{name}` has other links than the world; bind it again."
        )
    return skeleton


def _add(world: World, body: Gaussians, links: tuple[Link, ...], entity: Entity) -> World:
    parts = [part for part in (world.gaussians, body) if len(part)]
    return replace(
        world,
        gaussians=join_gaussians(parts or [body]),
        links=(*world.links, *links),
        entities=(*world.entities, entity),
    )


def _refuse_taken(world: World, name: str) -> None:
    taken = {entity.name for entity in world.entities} | {link.name for link in world.links}
    if not name or name in taken or name in (".", ".."):
        raise InputError(
            f"the name {name!r} cannot be given in this world; choose one that is not {sorted(taken)[:8]}."
        )


def _holds_splats(file: Path) -> bool:
    """Whether a file whose name could mean a mesh holds Gaussians: a PLY with scales, a glTF with splats."""
    suffix = file.suffix.lower()
    if suffix not in (".ply", ".glb", ".gltf"):
        return False
    with open(file, "rb") as stream:
        head = stream.read(1 << 16)
    marks = {".ply": (b"scale_0", b"packed_position")}.get(suffix, (b"KHR_gaussian_splatting",))
    return any(mark in head for mark in marks)


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".") or "agent"


def _model_place(skeleton: Skeleton) -> tuple[Path, Path]:
    """The folder that holds an MJCF with all its files, and the model's path in it; a URDF stands by itself."""
    path = Path(skeleton.path or "").resolve()
    home = path.parent
    if read_xml(path).tag == "mujoco":
        folders = [file.resolve().parent for file in skeleton.files]
        while not all(home == folder or home in folder.parents for folder in folders):
            home = home.parent
    return home, path.relative_to(home)


def _copy_model(skeleton: Skeleton, folder: Path) -> None:
    if skeleton.path is None:
        return
    home, place = _model_place(skeleton)
    root = read_xml(skeleton.path)
    if root.tag == "mujoco":
        for file in skeleton.files:
            _copy(file, folder / file.resolve().relative_to(home))
        return
    renamed: dict[str, str] = {}
    for number, (name, mesh) in enumerate(skeleton.meshes.items()):
        own = Path("meshes") / f"{number:03d}"  # a folder each: materials of different meshes may share a name
        for file in mesh_files(mesh):
            _copy(file, folder / own / file.resolve().relative_to(mesh.parent.resolve()))
        renamed[name] = (own / mesh.name).as_posix()
    for element in root.iter("mesh"):
        element.set("filename", renamed[element.get("filename", "")])
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
