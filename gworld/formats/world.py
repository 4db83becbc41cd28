"""World folders: `world.json`, `gaussians.ply` that any splat viewer opens, robot models in `agents/`.

Checkpoints in `dynamics/` and `refiner/` are named in `world.json` by the hash of their manifest, which names the
hashes of all their files: a world that was bound to one network never runs another one unnoticed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gworld.checkpoint import latest_checkpoint, verify_bundle
from gworld.errors import InputError, UsageError
from gworld.files import atomic_folder, existing_file, read_json, safe_join, write_json
from gworld.formats.convert import gaussians_from_table, table_from_gaussians
from gworld.formats.ply import read_ply, write_ply
from gworld.scene.cameras import Cameras
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

__all__ = ["World", "bind_dynamics", "bind_refiner", "gaussians_hash", "load_world", "save_world"]

FORMAT = "gworld world 1"
COVERAGE_FILE = "coverage.safetensors"
BOUND = ("dynamics", "refiner")
OWN = ("world.json", "gaussians.ply", COVERAGE_FILE, "agents", *BOUND)


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
        background = _colour(data.get("background"))
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"`{file}` is damaged: {type(error).__name__} {error}. Save the world again.") from error
    for entity in entities:
        if entity.source is not None:
            existing_file(safe_join(root / "agents", entity.source))
    bound = {kind: _bound(root, kind, data.get(kind)) for kind in BOUND}
    gaussians = gaussians_from_table(replace(table, link_table=links))
    try:
        return World(gaussians, links, entities, cameras, (gx, gy, gz), metric, root, background, **bound)
    except InputError as error:
        raise InputError(f"`{file}`: {error}") from error


def save_world(
    world: World, folder: str | Path, *, overwrite: bool = False, also: Callable[[Path], None] | None = None
) -> None:
    """Write a world folder atomically; robot models are copied from where the world was loaded.

    So is its coverage, as long as the Gaussians are the ones that it was measured on, and so are the dynamics and the
    refiner bound to it. `also` may write more into the folder before it appears. Raises `UsageError` when the folder
    exists and `overwrite` is False, `InputError` when what is bound is no whole checkpoint any more.
    """
    with atomic_folder(folder, own=OWN, overwrite=overwrite) as temporary:
        table = replace(table_from_gaussians(world.gaussians), link_table=world.links, axes="RFU", metric=world.metric)
        write_ply(table, temporary / "gaussians.ply")
        write_json(temporary / "world.json", _mapping(world) | _copy_bound(world, temporary))
        if world.folder is not None and (world.folder / "agents").is_dir():
            shutil.copytree(world.folder / "agents", temporary / "agents", symlinks=False)
        measured = None if world.folder is None else _measured_hash(world.folder / COVERAGE_FILE)
        if world.folder is not None and measured is not None and measured == gaussians_hash(temporary):
            shutil.copyfile(world.folder / COVERAGE_FILE, temporary / COVERAGE_FILE)
        if also is not None:
            also(temporary)


def bind_dynamics(
    folder: str | Path, run: str | Path, out: str | Path | None = None, *, overwrite: bool = False
) -> World:
    """Put the dynamics of a run into a world's folder, or into a copy of the world at `out`; returns the bound world.

    `run` is a training's folder, of which the newest checkpoint is taken, or a checkpoint itself. The folder changes in
    one step or not at all. Raises `UsageError` when the world is bound already or `out` exists, and `overwrite` is
    False, `InputError` when run or world cannot be used.
    """
    return _bind("dynamics", Path(folder), Path(run), out, overwrite)


def bind_refiner(
    folder: str | Path, run: str | Path, out: str | Path | None = None, *, overwrite: bool = False
) -> World:
    """Put the refiner of a run into a world's folder, as `bind_dynamics` does dynamics."""
    return _bind("refiner", Path(folder), Path(run), out, overwrite)


def gaussians_hash(folder: str | Path) -> str:
    """The sha256 of a world's `gaussians.ply`, which what was measured on it names; raises `InputError` without one."""
    return _hash(Path(folder) / "gaussians.ply")


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open(existing_file(file), "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _bind(kind: str, folder: Path, run: Path, out: str | Path | None, overwrite: bool) -> World:
    world = load_world(folder)
    if out is None and getattr(world, kind) is not None and not overwrite:
        raise UsageError(f"`{folder}` is bound to a {kind} checkpoint already. Add `--overwrite` to bind another one.")
    found = run if (run / "manifest.json").is_file() else latest_checkpoint(run)
    if found is None:
        raise InputError(f"`{run}` holds no checkpoint; name a run's folder, or a checkpoint with its manifest.json.")
    bound = replace(world, dynamics=found) if kind == "dynamics" else replace(world, refiner=found)
    save_world(bound, out or folder, overwrite=overwrite or out is None)
    return load_world(out or folder)


def _bound(root: Path, kind: str, digest: Any) -> Path | None:
    """The checkpoint that `world.json` names; raises `InputError` when it is missing or another one."""
    place = root / kind
    if digest is None:
        if place.exists():
            raise InputError(
                f"`{place}` lies in the world but is not named in its world.json. Move it away, then bind it with "
                f"`gworld bind {root} --{kind} FOLDER`."
            )
        return None
    if _hash(place / "manifest.json") != digest:
        raise InputError(
            f"`{place}` is not the checkpoint that its world is bound to (its hash differs). Bind it again."
        )
    return place


def _copy_bound(world: World, target: Path) -> dict[str, str]:
    """Copy the checkpoints bound to a world; returns their hashes by kind."""
    found = {}
    for kind in BOUND:
        source: Path | None = getattr(world, kind)
        if source is not None:
            verify_bundle(source)
            for name in ("manifest.json", "tensors.safetensors", "generators.safetensors"):
                (target / kind).mkdir(exist_ok=True)
                shutil.copyfile(source / name, target / kind / name)
            found[kind] = _hash(target / kind / "manifest.json")
    return found


def _measured_hash(file: Path) -> str | None:
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


def _colour(data: Any) -> tuple[float, float, float] | None:
    if data is None:
        return None
    red, green, blue = (float(value) for value in data)
    return red, green, blue


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
        "background": None if world.background is None else list(world.background),
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
