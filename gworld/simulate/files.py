"""What a simulation leaves on disk: `rollout.parquet`, label folders, episodes, animated GLB."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from gworld.data.clips import probe_clip
from gworld.data.parquet import read_columns, write_columns
from gworld.data.source import whole_video
from gworld.errors import InputError
from gworld.files import atomic_write
from gworld.formats.convert import table_from_gaussians
from gworld.formats.gltf_write import write_gltf
from gworld.scene.cameras import Cameras
from gworld.scene.episode import Behaviour, Episode
from gworld.scene.rollout import Rollout
from gworld.scene.world import World
from gworld.simulate.observe import Frame, placed
from gworld.simulate.touch import Contacts

LINK, ACTION, STD = "link/", "actions/", "link_std"
NEAREST_MM = 65535


def write_rollout(rollout: Rollout, path: str | Path) -> None:
    """A row per instant: `time`, `link/NAME` [7] `x y z qw qx qy qz`, `actions/AGENT` [A], `seed`, and, where the
    rollout tells it, `link_std` [L] in the order of the links; atomically."""
    columns: dict[str, np.ndarray] = {"time": rollout.times.numpy()}
    for index, name in enumerate(rollout.link_names):
        columns[f"{LINK}{name}"] = rollout.link_poses[:, index].numpy()
    for name, values in rollout.actions.items():
        if values.shape[1]:
            columns[f"{ACTION}{name}"] = values.numpy()
    if rollout.link_std is not None:
        columns[STD] = rollout.link_std.numpy()
    columns["seed"] = np.full(len(rollout), rollout.seeds[0] if rollout.seeds else 0, np.int64)
    with atomic_write(path) as stream:
        temporary = Path(stream.name)
        write_columns(temporary, columns)


def read_rollout(path: str | Path) -> Rollout:
    """What `write_rollout` wrote; raises `InputError` for another file."""
    columns = read_columns(path)
    links = [name for name in columns if name.startswith(LINK)]
    try:
        poses = torch.from_numpy(np.stack([columns[name] for name in links], axis=1)).float()
        actions = {
            name.removeprefix(ACTION): torch.from_numpy(np.array(values)).float()
            for name, values in columns.items()
            if name.startswith(ACTION)
        }
        seeds = tuple(int(seed) for seed in columns["seed"][:1])
        times = torch.from_numpy(np.array(columns["time"], np.float64))
        names = tuple(name.removeprefix(LINK) for name in links)
        std = torch.from_numpy(np.array(columns[STD], np.float32)) if STD in columns else None
        return Rollout(times, poses, names, actions, seeds, link_std=std)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"`{path}` is no rollout ({str(error)[:100]}); one written by `gworld simulate` is.") from None


def write_animation(world: World, rollout: Rollout, path: str | Path) -> None:
    """The world as a GLB in which the links move; viewers of KHR_gaussian_splatting play it."""
    table = replace(table_from_gaussians(world.gaussians), link_table=world.links, metric=world.metric)
    write_gltf(table, path, rollout.times.numpy(), rollout.link_poses.numpy())


class LabelFolder:
    """Writes the pictures and labels of frames into a folder that exists, one sub-folder per world and camera.

    `rgb-N.png`; `depth-N.png` 16 bit, millimetres, 0 for nothing; `link_id-N.png` 16 bit, link + 1, 0 for nothing;
    `seen-N.png`; `alpha`, `flow`, `scene_flow` as float16 in `NAME-N.npz`; `frames.jsonl` a line per frame: time,
    cameras, pixels per link, contacts; `labels.json` says all this.
    """

    def __init__(self, folder: Path, world: World, step: float) -> None:
        self.folder, self.world, self._count = folder, world, 0
        about = {
            "format": "gworld labels 1",
            "links": [link.name for link in world.links],
            "entities": {entity.name: list(entity.links) for entity in world.entities},
            "metric": world.metric,
            "seconds_per_step": step,
            "depth": "16 bit, millimetres along z, 0 for nothing",
            "link_id": "16 bit, link + 1, 0 for nothing",
            "seen": "2 seen, 1 extrapolated, 0 invented",
            "flow": "pixels since the frame before",
            "scene_flow": "metres since the frame before, world axes",
        }
        (folder / "labels.json").write_text(json.dumps(about, indent=2), encoding="utf-8")

    def add(self, frame: Frame, world_from_link: Tensor, contacts: Contacts | None = None) -> None:
        """Write one frame of all worlds."""
        for world, poses in enumerate(world_from_link):
            cameras = placed(frame.cameras, poses)
            for camera in range(len(cameras)):
                place = self.folder / f"world-{world:03d}" / camera_name(cameras, camera)
                place.mkdir(parents=True, exist_ok=True)
                self._pictures(frame, world, camera, place)
            line = json.dumps(self._line(frame, world, cameras, contacts), allow_nan=False)
            with open(self.folder / "frames.jsonl", "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        self._count += 1

    def _pictures(self, frame: Frame, world: int, camera: int, place: Path) -> None:
        from PIL import Image

        from gworld.render.video import as_uint8

        pictures: dict[str, Any] = {}
        if frame.rgb is not None:
            pictures["rgb"] = as_uint8(frame.rgb[world, camera])
        if frame.depth is not None:
            pictures["depth"] = (
                (frame.depth[world, camera] * 1000).round().clamp(0, NEAREST_MM).numpy().astype(np.uint16)
            )
        if frame.link_id is not None:
            pictures["link_id"] = (frame.link_id[world, camera] + 1).numpy().astype(np.uint16)
        if frame.seen is not None:
            pictures["seen"] = frame.seen[world, camera].numpy()
        for name, picture in pictures.items():
            Image.fromarray(picture).save(place / f"{name}-{self._count:06d}.png", compress_level=3)
        for name in ("alpha", "flow", "scene_flow"):
            values = getattr(frame, name)
            if values is not None:
                array = values[world, camera].numpy().astype(np.float16)
                np.savez_compressed(place / f"{name}-{self._count:06d}.npz", **{name: array})

    def _line(self, frame: Frame, world: int, cameras: Cameras, contacts: Contacts | None) -> dict[str, Any]:
        line: dict[str, Any] = {"frame": self._count, "time": round(frame.time, 9), "world": world, "cameras": {}}
        for camera in range(len(cameras)):
            entry = {"K": cameras.K[camera].tolist(), "world_from_camera": cameras.world_from_camera[camera].tolist()}
            if frame.visibility is not None:
                entry["pixels"] = frame.visibility[world, camera].tolist()
            line["cameras"][camera_name(cameras, camera)] = entry
        if contacts is not None:
            rows = (contacts.world == world).nonzero()[:, 0].tolist()
            line["contacts"] = [
                {
                    "links": contacts.links[row].tolist(),
                    "gap": round(float(contacts.gap[row]), 6),
                    "point": [round(part, 6) for part in contacts.point[row].tolist()],
                    "normal": [round(part, 6) for part in contacts.normal[row].tolist()],
                }
                for row in rows
            ]
        return line


def make_episode(
    world: World,
    rollout: Rollout,
    videos: Mapping[str, Path],
    cameras: Cameras | None,
    behaviours: Mapping[str, str],
    joints: Mapping[str, Tensor] | None = None,
) -> Episode:
    """A rollout as an episode: its poses, actions and joints, with the videos drawn of it and their calibration.

    `behaviours` says who chose each agent's actions; names that are none of the known kinds become `unknown`.
    """
    known = {name: word if word in get_args(Behaviour) else "unknown" for name, word in behaviours.items()}
    kinds = set(known.values())
    names = {
        f"{ACTION}{agent.name}": agent.action.names
        for agent in world.agents
        if agent.action is not None and agent.name in rollout.actions
    }
    return Episode(
        rollout.times,
        actions=dict(rollout.actions),
        joints=dict(joints or {}),
        link_poses=rollout.link_poses,
        link_names=rollout.link_names,
        videos=tuple(whole_video(probe_clip(path), name) for name, path in videos.items()),
        cameras=cameras,
        behaviour=kinds.pop() if len(kinds) == 1 else "mixed",  # type: ignore[arg-type]  # checked against the kinds
        source=f"gworld simulate {rollout.world}".strip(),
        names=names,
        behaviours=known,  # type: ignore[arg-type]  # checked against the kinds
    )


def camera_name(cameras: Cameras, index: int) -> str:
    """A camera's name as a folder or file can carry it."""
    name = cameras.names[index] if cameras.names else ""
    clean = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
    return clean or f"camera{index}"
