"""One episode in one folder: `episode.json`, `steps.parquet`, `frames.parquet` and its videos."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from gworld.data.clips import copy_clip, probe_clip
from gworld.data.parquet import read_columns, write_columns
from gworld.errors import InputError
from gworld.files import read_json, safe_join, write_json
from gworld.scene.cameras import CameraModel, Cameras
from gworld.scene.episode import TABLES, Behaviour, Episode, Video

FORMAT = "gworld episode 1"
MAX_NAME = 200


def save_record(episode: Episode, folder: Path) -> None:
    """Write an episode into a folder; videos that lie there already stay, the others are copied in.

    Raises `InputError` for an episode without steps, with infinite numbers, or with two videos of one name.
    """
    if len(episode) == 0:
        raise InputError("an episode without steps was given; at least one is needed.")
    names = [video.name for video in episode.videos]
    if len(set(names)) != len(names):
        raise InputError(f"the episode has the videos {names}; names must differ.")
    columns = {"time": episode.times.double().numpy()}
    for kind in TABLES:
        for name, values in getattr(episode, kind).items():
            columns[f"{kind}/{_checked(name)}"] = values.detach().cpu().numpy()
    if episode.link_poses is not None:
        columns["link_poses"] = episode.link_poses.detach().cpu().reshape(len(episode), -1).numpy()
    for name, array in columns.items():
        if np.isinf(array).any() or (name == "time" and np.isnan(array).any()):
            raise InputError(f"column {name!r} of an episode holds infinity; finite numbers, or NaN, are needed.")
    write_columns(folder / "steps.parquet", {name: array for name, array in columns.items() if array.size})
    videos = [_save_video(video, folder, index) for index, video in enumerate(episode.videos)]
    numbers = [np.full(len(video.times), index, np.int32) for index, video in enumerate(episode.videos)]
    times = [video.times.double().numpy() for video in episode.videos]
    frames = {"video": np.concatenate([*numbers, np.zeros(0, np.int32)]), "time": np.concatenate([*times, np.zeros(0)])}
    write_columns(folder / "frames.parquet", frames)
    empty = [name for name, array in columns.items() if not array.size]
    write_json(folder / "episode.json", _facts(episode, videos, empty))


def load_record(folder: Path) -> Episode:
    """Read what `save_record` wrote; raises `InputError` when rows, frames and videos do not fit together."""
    facts = read_json(folder / "episode.json")
    try:
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {str(facts['format'])[:50]!r}")
        columns = read_columns(folder / "steps.parquet")
        frames = read_columns(folder / "frames.parquet", ["video", "time"])
        videos = tuple(_load_video(entry, folder, frames, index) for index, entry in enumerate(facts["videos"]))
        if len(frames["time"]) != sum(len(video.times) for video in videos):
            raise ValueError(f"frames.parquet times {len(frames['time'])} frames, of more videos than are listed")
        return _episode(facts, columns, videos)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`{folder / 'episode.json'}` is damaged ({reason}). Ingest the episode again.") from error


def record_frames(episode: Episode) -> dict[str, int]:
    """Frames by video name."""
    return {video.name: len(video.times) for video in episode.videos}


def _checked(name: str) -> str:
    if not name or len(name) > MAX_NAME:
        raise InputError(f"a table of an episode is named {name[:50]!r}; 1 to {MAX_NAME} characters are needed.")
    return name


def _facts(episode: Episode, videos: list[dict[str, Any]], empty: list[str]) -> dict[str, Any]:
    cameras = episode.cameras
    calibration = None
    if cameras is not None:
        calibration = {
            "K": cameras.K.tolist(),
            "world_from_camera": cameras.world_from_camera.tolist(),
            "width": cameras.width,
            "height": cameras.height,
            "model": cameras.model,
            "distortion": None if cameras.distortion is None else cameras.distortion.tolist(),
            "names": list(cameras.names),
            "links": list(cameras.links),
        }
    return {
        "format": FORMAT,
        "source": episode.source,
        "licence": episode.licence,
        "task": episode.task,
        "behaviour": episode.behaviour,
        "behaviours": dict(episode.behaviours),
        "success": episode.success,
        "names": {key: list(value) for key, value in episode.names.items()},
        "link_names": list(episode.link_names),
        "empty": empty,
        "videos": videos,
        "cameras": calibration,
        "origin": episode.origin,
    }


def _save_video(video: Video, folder: Path, index: int) -> dict[str, Any]:
    clip = probe_clip(video.path)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", video.name).strip("._")[:100] or "video"
    if video.path.parent.resolve() == folder.resolve():
        file = video.path.name
        if video.first or len(clip) != len(video.times):
            raise InputError(f"`{video.path.name}` has {len(clip)} frames; {len(video.times)} times were given.")
    else:
        whole = video.first == 0 and len(clip) == len(video.times)
        file = f"{index}-{stem}{video.path.suffix.lower() if whole else '.mp4'}"
        copy_clip(clip, folder / file, video.first, len(video.times))
    entry: dict[str, Any] = {"name": video.name, "file": file}
    for kind in ("masks", "depth"):
        source = getattr(video, kind)
        entry[kind] = None if source is None else _copy_beside(source, folder, f"{index}-{stem}-{kind}")
    return entry


def _copy_beside(source: Path, folder: Path, name: str) -> str:
    """Take a mask or depth video, or a folder of pictures, into the episode's folder."""
    if source.parent.resolve() == folder.resolve():
        return source.name
    name += source.suffix.lower()
    if source.is_dir():
        shutil.copytree(source, folder / name)
    else:
        shutil.copyfile(source, folder / name)
    return name


def _load_video(entry: Mapping[str, Any], folder: Path, frames: Mapping[str, Any], index: int) -> Video:
    path = safe_join(folder, entry["file"])
    times = frames["time"][frames["video"] == index]
    count = len(probe_clip(path))
    if count != len(times):
        raise InputError(f"`{path}` has {count} frames; frames.parquet times {len(times)}. Ingest the episode again.")
    if not np.isfinite(times).all() or (np.diff(times) <= 0).any():
        raise ValueError(f"the frame times of {path.name} do not increase")
    sides: dict[str, Any] = {
        kind: None if entry[kind] is None else safe_join(folder, entry[kind]) for kind in ("masks", "depth")
    }
    return Video(str(entry["name"]), path, torch.from_numpy(times.astype(np.float64)), **sides)


def _episode(facts: Mapping[str, Any], columns: dict[str, Any], videos: tuple[Video, ...]) -> Episode:
    times = torch.from_numpy(np.array(columns.pop("time"), np.float64))
    if not bool(torch.isfinite(times).all()):
        raise ValueError("its times are not finite")
    columns |= {name: np.zeros((len(times), 0), np.float32) for name in facts["empty"]}
    links = tuple(map(_text, facts["link_names"]))
    poses = columns.pop("link_poses", None)
    tables: dict[str, dict[str, Tensor]] = {kind: {} for kind in TABLES}
    for name, values in columns.items():
        kind, _, owner = name.partition("/")
        tables[kind][owner] = _numbers(values, name)
    behaviour, each = facts["behaviour"], facts.get("behaviours", {})
    if not {behaviour, *each.values()} <= set(get_args(Behaviour)) or facts["success"] not in (None, True, False):
        raise ValueError(f"behaviour {str(behaviour)[:30]!r} or success is none of the known")
    return Episode(
        times=times,
        **tables,
        link_poses=None if poses is None else _numbers(poses, "link_poses").reshape(len(times), len(links), 7),
        link_names=links,
        videos=videos,
        cameras=_cameras(facts["cameras"]),
        behaviour=behaviour,
        success=facts["success"],
        source=_text(facts["source"]),
        licence=_text(facts["licence"]),
        task=_text(facts["task"]),
        behaviours={_text(key): value for key, value in each.items()},
        names={_text(key): tuple(map(_text, value)) for key, value in facts["names"].items()},
        origin=dict(facts.get("origin", {})),
    )


def _numbers(values: Any, name: str) -> Tensor:
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f" or np.isinf(values).any():
        raise ValueError(f"column {name[:60]!r} does not hold a row of finite numbers per step")
    return torch.from_numpy(np.array(values))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:30]!r} is no text")
    return value


def _cameras(facts: Mapping[str, Any] | None) -> Cameras | None:
    if facts is None:
        return None
    given = dict(facts)
    tensors = {
        key: None if given[key] is None else torch.tensor(given[key], dtype=torch.float32)
        for key in ("K", "world_from_camera", "distortion")
    }
    if not all(tensor is None or bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise ValueError("a camera holds numbers that are not finite")
    if given["model"] not in get_args(CameraModel) or not all(
        type(given[key]) is int and math.isfinite(given[key]) for key in ("width", "height")
    ):
        raise ValueError("a camera's model or size is none that exists")
    given |= {"names": tuple(map(_text, given["names"])), "links": tuple(int(link) for link in given["links"])}
    return Cameras(**{**given, **tensors})


def with_videos(episode: Episode, videos: tuple[Video, ...]) -> Episode:
    """The episode with other videos, and without the calibration that belonged to the old ones' order."""
    return replace(episode, videos=videos, cameras=None)
