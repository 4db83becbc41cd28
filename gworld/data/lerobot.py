"""LeRobot data sets, v2.0/v2.1 (a file per episode) and v3.0 (files shared by many), as sources of episodes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gworld.data.clips import Clip, probe_clip
from gworld.data.parquet import read_columns
from gworld.data.source import ROBOT, Source, numbers, same_count, texts
from gworld.errors import InputError
from gworld.files import existing_file, parse_json, read_json, safe_join
from gworld.scene.episode import Episode, Video

ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
_BOOKKEEPING = {"timestamp", "frame_index", "episode_index", "index", "task_index", "next.done"}
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{0,2})d)?\}")
MAX_LINES = 64 << 20


@dataclass(frozen=True)
class _Set:
    """What `meta/` says: features by name, rate, path templates, tasks by number, an entry per episode."""

    root: Path
    version: str
    fps: float
    chunk: int
    features: Mapping[str, Any]
    templates: Mapping[str, str]
    tasks: Mapping[int, str]
    episodes: tuple[Mapping[str, Any], ...]

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.features.items() if value.get("dtype") == "video")


def is_lerobot(path: Path) -> bool:
    """Whether a folder holds `meta/info.json` of a LeRobot data set."""
    return (path / "meta" / "info.json").is_file()


def open_lerobot(path: str | Path) -> Source:
    """A LeRobot data set; episodes whose files are not here (a partial download) are left out and noted.

    `action` becomes the actions and `observation.state` the joints of one agent, other numbers signals. Raises
    `InputError` for a version or a feature that is not known, or when rows, frames and index disagree.
    """
    root = Path(path)
    data = _read_meta(root)
    present = [entry for entry in data.episodes if _is_here(data, entry)]
    notes = []
    if len(present) < len(data.episodes):
        notes.append(f"{len(data.episodes) - len(present)} of {len(data.episodes)} episodes have no files here")
    if not present:
        raise InputError(f"`{root}` lists {len(data.episodes)} episodes, and the files of none are here.")
    stills = [name for name, value in data.features.items() if value.get("dtype") == "image"]
    notes += [f"pictures {name!r} are kept in the table, not in a video; they are left out" for name in stills]
    names = tuple(f"episode_{entry['episode_index']:06d}" for entry in present)
    cache: dict[Path, Any] = {}

    def read(index: int, scratch: Path) -> Episode:
        return _read_episode(data, present[index], cache)

    return Source(f"LeRobot {data.version}", root, names, read, tuple(notes))


def _read_meta(root: Path) -> _Set:
    source = root / "meta" / "info.json"
    info = read_json(source)
    try:
        version = str(info["codebase_version"])
        major = version.lstrip("v").split(".")[0]
        if major not in ("2", "3"):
            raise InputError(f"`{source}` is of version {version[:20]!r}; v2.0, v2.1 and v3.0 are read.")
        fps, chunk = float(info["fps"]), int(info.get("chunks_size", 1000))
        features = {str(key): dict(value) for key, value in info["features"].items()}
        for name, value in features.items():
            if not isinstance(value.get("shape"), list) or not isinstance(value.get("dtype"), str):
                raise ValueError(f"feature {name[:60]!r} has no shape or dtype")
        templates = {"data": str(info["data_path"]), "video": str(info.get("video_path") or "")}
        if not 0 < fps < 10_000 or chunk < 1:
            raise ValueError(f"fps is {fps}, chunks_size {chunk}")
        episodes = _episodes_v2(root) if major == "2" else _episodes_v3(root)
        tasks = _tasks_v2(root) if major == "2" else _tasks_v3(root)
        if len({entry["episode_index"] for entry in episodes}) != len(episodes):
            raise ValueError("an episode is listed twice")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"`{root / 'meta'}` is damaged ({str(error)[:200]!r}). Download it again.") from error
    total = info.get("total_episodes", len(episodes))
    same_count(source, "total_episodes", int(total) if isinstance(total, int) else -1, "the list", len(episodes))
    frames = info.get("total_frames")
    if isinstance(frames, int):
        same_count(
            source, "total_frames", frames, "the sum of the episodes' lengths", sum(e["length"] for e in episodes)
        )
    return _Set(root, version, fps, chunk, features, templates, tasks, tuple(episodes))


def _lines(path: Path) -> list[Any]:
    if existing_file(path).stat().st_size > MAX_LINES:
        raise InputError(f"`{path}` has more than {MAX_LINES} bytes; that is no list of episodes.")
    lines = path.read_bytes().splitlines()
    return [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _episodes_v2(root: Path) -> list[dict[str, Any]]:
    return [
        {"episode_index": _whole(line["episode_index"]), "length": _whole(line["length"]), "tasks": line["tasks"]}
        for line in _lines(root / "meta" / "episodes.jsonl")
    ]


def _tasks_v2(root: Path) -> dict[int, str]:
    return {_whole(line["task_index"]): str(line["task"]) for line in _lines(root / "meta" / "tasks.jsonl")}


def _episodes_v3(root: Path) -> list[dict[str, Any]]:
    needed = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
    entries: list[dict[str, Any]] = []
    for file in sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        places = [name for name in _columns(file) if name.startswith("videos/")]
        columns = read_columns(file, [*needed, *places])
        for row in range(len(columns["length"])):
            entry = {key: values[row] for key, values in columns.items()}
            whole = [key for key in entry if key.endswith("_index") or key == "length"]
            entries.append(entry | {key: _whole(int(entry[key])) for key in whole})
    return entries


def _columns(file: Path) -> list[str]:
    from gworld.data.parquet import column_names

    return column_names(file)


def _tasks_v3(root: Path) -> dict[int, str]:
    columns = read_columns(root / "meta" / "tasks.parquet")
    numbered = columns.pop("task_index")
    return {int(number): str(text) for number, text in zip(numbered, next(iter(columns.values())), strict=True)}


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 40:
        raise ValueError(f"{str(value)[:20]} is no count")
    return value


def _place(data: _Set, kind: str, entry: Mapping[str, Any], camera: str = "") -> Path:
    """The file of an episode by the data set's own template, or beside its fellows where folders were flattened."""
    number = entry["episode_index"]
    values: dict[str, Any] = {"episode_index": number, "episode_chunk": number // data.chunk, "video_key": camera}
    prefix = "data" if kind == "data" else f"videos/{camera}"
    values |= {key: entry.get(f"{prefix}/{key}", 0) for key in ("chunk_index", "file_index")}

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]]
        return str(value) if match[2] is None or isinstance(value, str) else f"{value:0{int(match[2] or 0)}d}"

    name = _FIELD.sub(fill, data.templates[kind])
    place = safe_join(data.root, name)
    flat = safe_join(data.root, f"{'data' if kind == 'data' else 'videos'}/{Path(name).name}")
    alone = kind == "data" or len(data.cameras) == 1
    return flat if alone and not place.is_file() and flat.is_file() else place


def _is_here(data: _Set, entry: Mapping[str, Any]) -> bool:
    try:
        places = [_place(data, "data", entry), *(_place(data, "video", entry, name) for name in data.cameras)]
        return all(place.is_file() for place in places)
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(
            f"`{data.root / 'meta'}`: the path of an episode cannot be made ({str(error)[:100]})."
        ) from error


def _read_episode(data: _Set, entry: Mapping[str, Any], cache: dict[Path, Any]) -> Episode:
    place = _place(data, "data", entry)
    number, length = entry["episode_index"], entry["length"]
    columns = _cached(cache, place, lambda: read_columns(place, *_wanted(data)))
    rows = np.flatnonzero(columns["episode_index"] == number)
    same_count(place, f"episode {number} in the table", len(rows), "its length in the index", length)
    if length == 0:
        raise InputError(f"`{place}`: episode {number} has no steps.")
    kinds: dict[str, Any] = {"actions": {}, "joints": {}, "signals": {}}
    names: dict[str, tuple[str, ...]] = {}
    for key, values in columns.items():
        if key in _BOOKKEEPING:
            continue
        kind, owner = {ACTION: ("actions", ROBOT), STATE: ("joints", ROBOT)}.get(key, ("signals", key))
        table = numbers(values[rows], key, place, length)
        kinds[kind][owner] = table
        labels = texts(data.features[key].get("names"))
        if len(labels) == table.shape[1]:
            names[f"{kind}/{owner}"] = labels
    times = torch.from_numpy(np.asarray(columns["timestamp"][rows], np.float64))
    if not bool(torch.isfinite(times).all()):
        raise InputError(f"`{place}`: episode {number} has times that are not finite.")
    steady = torch.arange(length, dtype=torch.float64) / data.fps
    times = steady if float((times - steady).abs().max()) < 1e-3 else times  # they are stored with seven digits
    success = columns.get("next.success")
    task = data.tasks.get(int(columns["task_index"][rows[0]]), "") if "task_index" in columns else ""
    return Episode(
        times,
        **kinds,
        videos=tuple(_video(data, entry, camera, times, cache) for camera in data.cameras),
        success=None if success is None else bool(np.asarray(success[rows]).any()),
        source=f"LeRobot {data.version} {data.root.name} episode {number}",
        task=task or " / ".join(map(str, entry["tasks"])),
        names=names,
    )


def _wanted(data: _Set) -> tuple[list[str], list[str]]:
    """Columns that must be there, and those that may."""
    simple = ("float32", "float64", "int64", "int32", "bool", "uint8")
    tables = [
        name
        for name, value in data.features.items()
        if value.get("dtype") in simple and len(value["shape"]) <= 1 and name not in _BOOKKEEPING
    ]
    return ["timestamp", "episode_index", *tables], ["task_index"]


def _video(data: _Set, entry: Mapping[str, Any], camera: str, times: Tensor, cache: dict[Path, Any]) -> Video:
    place = _place(data, "video", entry, camera)
    clip: Clip = _cached(cache, place, lambda: probe_clip(place))
    name, length = camera.removeprefix(IMAGES), entry["length"]
    if f"videos/{camera}/from_timestamp" not in entry:
        same_count(place, "the video's frames", len(clip), "the episode's length in the index", length)
        return Video(name, place, torch.from_numpy(clip.times + float(times[0])))
    begin, end = (float(entry[f"videos/{camera}/{key}_timestamp"]) for key in ("from", "to"))
    half = 0.5 / data.fps
    first = int(np.searchsorted(clip.times, begin - half))
    count = int(np.searchsorted(clip.times, end - half)) - first
    same_count(place, f"frames from {begin:g} s to {end:g} s", count, "the episode's length in the index", length)
    shown = clip.times[first : first + count] - clip.times[first]
    return Video(name, place, torch.from_numpy(shown + float(times[0])), first=first)


def _cached(cache: dict[Path, Any], place: Path, make: Any) -> Any:
    """What was read last of each kind of file: consecutive episodes share theirs."""
    if place not in cache:
        for other in [path for path in cache if path.parent.parent == place.parent.parent and path != place]:
            del cache[other]
        cache[place] = make()
    return cache[place]
