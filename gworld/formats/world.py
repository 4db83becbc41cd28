"""World folders: `world.json`, `gaussians.ply` that any splat viewer opens, robot models in `agents/`."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gworld.errors import InputError
from gworld.files import atomic_folder, existing_file, read_json, safe_join, write_json
from gworld.formats.convert import gaussians_from_table, table_from_gaussians
from gworld.formats.ply import read_ply, write_ply
from gworld.scene.cameras import Cameras
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

__all__ = ["World", "gaussians_hash", "load_world", "save_world"]

FORMAT = "gworld world 1"
COVERAGE_FILE = "coverage.safetensors"
OWN = ("world.json", "gaussians.ply", COVERAGE_FILE, "agents", "dynamics", "refiner")


def load_world(folder: str | Path) -> World:
    """Read a world folder; raises `InputError` naming the file and the field when something is missing or wrong."""
    root = Path(folder)
    file = existing_file(root / "world.json")
    data = read_json(file)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise InputError(f"`{file}` has format {found!r}; {FORMAT!r} is needed. Use the gworld that wrote it.")
    table = read_ply(existing_file(root / "gaussians.ply"))
    try:
        links = tuple(Link(str(x["name"]), tuple(float(v) for v in x["pose"]), int(x["parent"])) for x in data["links"])
        entities = tuple(_entity(entry) for entry in data["entities"])
        gx, gy, gz = (float(value) for value in data["gravity"])
        cameras = _cameras(data["cameras"]) if data.get("cameras") else None
        metric = data["metric"]
        if not isinstance(metric, bool):
            raise TypeError(f"metric is {metric!r}, not true or false")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"`{file}` is damaged: {type(error).__name__} {error}. Save the world again.") from error
    for entity in entities:
        if entity.source is not None:
            existing_file(safe_join(root / "agents", entity.source))
    gaussians = gaussians_from_table(replace(table, link_table=links))
    try:
        return World(gaussians, links, entities, cameras, (gx, gy, gz), metric, root)
    except InputError as error:
        raise InputError(f"`{file}`: {error}") from error


def save_world(world: World, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a world folder atomically; robot models are copied from where the world was loaded.

    So is its coverage, as long as the Gaussians are the ones that it was measured on.
    Raises `UsageError` when the folder exists and `overwrite` is False.
    """
    with atomic_folder(folder, own=OWN, overwrite=overwrite) as temporary:
        table = replace(table_from_gaussians(world.gaussians), link_table=world.links, axes="RFU", metric=world.metric)
        write_ply(table, temporary / "gaussians.ply")
        write_json(temporary / "world.json", _mapping(world))
        if world.folder is not None and (world.folder / "agents").is_dir():
            shutil.copytree(world.folder / "agents", temporary / "agents", symlinks=False)
        bound = None if world.folder is None else _bound_hash(world.folder / COVERAGE_FILE)
        if world.folder is not None and bound is not None and bound == gaussians_hash(temporary):
            shutil.copyfile(world.folder / COVERAGE_FILE, temporary / COVERAGE_FILE)


def gaussians_hash(folder: str | Path) -> str:
    """The sha256 of a world's `gaussians.ply`, which what was measured on it names; raises `InputError` without one."""
    digest = hashlib.sha256()
    with open(existing_file(Path(folder) / "gaussians.ply"), "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bound_hash(file: Path) -> str | None:
    """The Gaussians' hash that a file of measurements names; None without one."""
    try:
        with safe_open(file, framework="pt") as parts:
            return (parts.metadata() or {}).get("gaussians")
    except (OSError, SafetensorError):
        return None


def _entity(entry: dict[str, Any]) -> Entity:
    if not isinstance(entry, dict) or not isinstance(entry.get("action") or {}, dict):
        raise TypeError("an entity or its action is not an object")
    action = entry.get("action")
    if entry["kind"] not in ("static", "agent", "object"):
        raise ValueError(f"kind is {entry['kind']!r}")
    spec = None
    if action is not None:
        spec = ActionSpec(
            tuple(map(str, action["names"])),
            tuple(map(str, action["units"])),
            tuple(map(float, action["low"])),
            tuple(map(float, action["high"])),
        )
    source = entry.get("source")
    return Entity(
        str(entry["name"]),
        entry["kind"],
        tuple(map(int, entry["links"])),
        spec,
        None if source is None else str(source),
    )


def _cameras(data: dict[str, Any]) -> Cameras:
    if not isinstance(data, dict):
        raise TypeError("cameras is not an object")
    distortion = data.get("distortion")
    if data["model"] not in ("pinhole", "opencv", "fisheye", "equirectangular"):
        raise ValueError(f"camera model is {data['model']!r}")
    cameras = Cameras(
        K=torch.tensor(data["K"], dtype=torch.float32),
        world_from_camera=torch.tensor(data["world_from_camera"], dtype=torch.float32),
        width=int(data["width"]),
        height=int(data["height"]),
        model=data["model"],
        distortion=None if distortion is None else torch.tensor(distortion, dtype=torch.float32),
        names=tuple(map(str, data.get("names", ()))),
        links=tuple(map(int, data.get("links", ()))),
    )
    parts = [cameras.K, cameras.world_from_camera] + ([] if cameras.distortion is None else [cameras.distortion])
    rotation = cameras.world_from_camera[:, :3, :3]
    skewed = (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs() > 1e-3
    if not all(bool(part.isfinite().all()) for part in parts) or bool(skewed.any()):
        raise ValueError("a camera is not finite or its rotation is none")
    return cameras


def _mapping(world: World) -> dict[str, Any]:
    entities: list[dict[str, Any]] = []
    for entity in world.entities:
        entry: dict[str, Any] = {"name": entity.name, "kind": entity.kind, "links": list(entity.links)}
        if entity.action is not None:
            spec = entity.action
            entry["action"] = {"names": spec.names, "units": spec.units, "low": spec.low, "high": spec.high}
        if entity.source is not None:
            entry["source"] = entity.source
        entities.append(entry)
    cameras = world.cameras
    return {
        "format": FORMAT,
        "metric": world.metric,
        "gravity": list(world.gravity),
        "links": [{"name": link.name, "pose": list(link.pose), "parent": link.parent} for link in world.links],
        "entities": entities,
        "cameras": None
        if cameras is None
        else {
            "width": cameras.width,
            "height": cameras.height,
            "model": cameras.model,
            "K": cameras.K.tolist(),
            "world_from_camera": cameras.world_from_camera.tolist(),
            "distortion": None if cameras.distortion is None else cameras.distortion.tolist(),
            "names": list(cameras.names),
            "links": list(cameras.links),
        },
    }


# The noun lives below this room and cannot import it, so the reader is handed to it here.
World.load = staticmethod(load_world)
