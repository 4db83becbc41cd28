"""Episode stores written as LeRobot v3.0 data sets, laid out as the `lerobot` library lays out its own.

    meta/info.json  meta/stats.json  meta/tasks.parquet  meta/episodes/chunk-000/file-000.parquet
    data/chunk-000/file-000.parquet  videos/observation.images.CAMERA/chunk-000/file-000.mp4

A data set has one row per video frame: states go straight between measurements, actions are those in force then, a
camera that runs at another rate shows its latest frame. Videos are joined without being encoded anew where one coding
and one frame per row allow it. Unknown actions stay NaN.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.data.clips import Clip, join_clips, probe_clip, read_frames, write_clip
from gworld.data.lerobot_stats import Stats, image_stats, pooled_stats, table_stats
from gworld.data.lerobot_tables import data_table, write_episodes, write_tasks
from gworld.data.parquet import parquet_library
from gworld.data.store import EpisodeSet, read_episode
from gworld.data.sync import between, held
from gworld.errors import InputError
from gworld.files import atomic_folder, write_json
from gworld.scene.episode import Episode

ACTION, STATE, IMAGES = "action", "observation.state", "observation.images."
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
CHUNK_SIZE, DATA_MB, VIDEO_MB = 1000, 100, 200
OWN = ("meta", "data", "videos")


@dataclass(frozen=True)
class _Rows:
    """One episode on the data set's clock: tables [T, A] by feature, frame numbers [T] of each camera's video."""

    episode: Episode
    tables: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]
    frames: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.tables.values())))


def write_lerobot(
    episodes: EpisodeSet,
    out: str | Path,
    *,
    fps: float | None = None,
    robot_type: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Write a store as a LeRobot v3.0 data set; return its `info.json`.

    `fps` is the rate of the first camera's video (of the steps, where there is none) unless given. Raises `InputError`
    when episodes differ in cameras or in the width of actions and states, for one data set has one layout.
    """
    if len(episodes) == 0:
        raise InputError(f"`{episodes.folder}` holds no finished episode; at least one is needed.")
    rate = fps or _usual_rate(read_episode(episodes, 0))
    tasks: dict[str, int] = {}
    folder = atomic_folder(out, own=OWN, overwrite=overwrite)
    with folder as root, contextlib.closing(_Writer(root, rate)) as writer:
        for position in range(len(episodes)):
            rows = _on_clock(read_episode(episodes, position), rate)
            task = rows.episode.task or "unknown"
            writer.add(rows, task, tasks.setdefault(task, len(tasks)))
            if progress:
                progress(f"episode {position + 1} of {len(episodes)}", (position + 1) / len(episodes))
        return writer.finish(tasks, robot_type)


def _usual_rate(episode: Episode) -> float:
    times = episode.videos[0].times if episode.videos else episode.times
    if len(times) < 2:
        raise InputError("the first episode has a single frame; give the frames per second.")
    rate = 1.0 / float(times.diff().median())
    return float(round(rate)) if abs(rate - round(rate)) < 0.02 * rate and rate > 0.5 else rate


def _on_clock(episode: Episode, rate: float) -> _Rows:
    """Resample one episode: `rate` rows a second over the time that steps and all videos share."""
    log = episode.times.double().numpy()
    begin = max([log[0], *(float(video.times[0]) for video in episode.videos)])
    half = 0.5 / rate
    end = min([log[-1], *(float(video.times[-1]) for video in episode.videos)]) if episode.videos else log[-1]
    clock = begin + np.arange(int((end - begin) * rate + 1e-6 + (0.5 if episode.videos else 0.0)) + 1) / rate
    gap = max(5.0 * float(np.median(np.diff(log))), 2.0 / rate) if len(log) > 1 else 2.0 / rate
    near = np.minimum(clock, log[-1])
    tables: dict[str, np.ndarray] = {}
    names: dict[str, tuple[str, ...]] = {}
    for feature, kind in ((STATE, "joints"), (ACTION, "actions")):
        table = getattr(episode, kind)
        if table:
            values = torch.cat([part.double() for part in table.values()], dim=1).numpy()
            slack = 0.02 / rate  # clocks are written with few digits
            on_rows = held(log, values, near, gap, slack) if kind == "actions" else between(log, values, near, gap)
            tables[feature] = on_rows.astype(np.float32)
            names[feature] = _names(episode, kind)
    for name, part in episode.signals.items():
        feature = STATE if name == "state" and STATE not in tables else f"observation.{name.replace('/', '.')}"
        tables[feature] = between(log, part.double().numpy(), near, gap).astype(np.float32)
        names[feature] = episode.names.get(f"signals/{name}", ())
    if not tables:
        raise InputError(f"episode `{episode.source}` has neither actions nor states; LeRobot needs one.")
    frames = {}
    for video in episode.videos:
        shown = video.times.double().numpy()
        frames[video.name] = np.clip(np.searchsorted(shown, clock + half) - 1, 0, len(shown) - 1)
    return _Rows(episode, tables, names, frames)


def _names(episode: Episode, kind: str) -> tuple[str, ...]:
    """`agent/column`, or the bare column where one agent is all there is; nothing where an agent's have no names."""
    table = getattr(episode, kind)
    labels = [episode.names.get(f"{kind}/{agent}", ()) for agent in table]
    if not all(labels):
        return ()
    if len(table) == 1:
        return labels[0]
    return tuple(f"{agent}/{name}" for agent, group in zip(table, labels, strict=True) for name in group)


class _Writer:
    """Collects rows, videos and statistics; one data file and one video file per camera until they are full."""

    def __init__(self, root: Path, rate: float) -> None:
        self.root, self.rate = root, rate
        self.features: dict[str, dict[str, Any]] = {}
        self.layout = ""
        self.entries: list[dict[str, Any]] = []
        self.stats: list[dict[str, Stats]] = []
        self.total = 0
        self.data: Any = None
        self.data_at, self.video_at = 0, 0
        self.waiting: dict[str, list[tuple[Clip, np.ndarray, int]]] = {}
        self.bytes = 0

    def add(self, rows: _Rows, task: str, task_index: int) -> None:
        """Append one episode."""
        features = _features(rows, self.rate)
        if not self.features:
            self.features, self.layout = features, _layout(features)
        elif _layout(features) != self.layout:
            raise InputError(
                f"episode {len(self.entries)} has {_layout(features)}; the first has {self.layout}. "
                "A LeRobot data set has one layout: write them apart."
            )
        number, length = len(self.entries), len(rows)
        columns = dict(rows.tables)
        columns["timestamp"] = (np.arange(length) / self.rate).astype(np.float32)
        columns["frame_index"] = np.arange(length)
        columns["episode_index"] = np.full(length, number)
        columns["index"] = self.total + np.arange(length)
        columns["task_index"] = np.full(length, task_index)
        entry: dict[str, Any] = {"episode_index": number, "tasks": [task], "length": length}
        entry |= self._add_data(columns)
        entry |= {"dataset_from_index": self.total, "dataset_to_index": self.total + length}
        stats: dict[str, Stats] = {}
        self._roll_videos(rows)
        for video in rows.episode.videos:
            key = IMAGES + video.name
            parts = self.waiting.setdefault(key, [])
            begin = sum(len(frames) for _, frames, _ in parts) / self.rate
            parts.append((probe_clip(video.path), rows.frames[video.name], video.first))
            entry |= {f"videos/{key}/chunk_index": self.video_at // CHUNK_SIZE}
            entry |= {f"videos/{key}/file_index": self.video_at % CHUNK_SIZE}
            entry |= {f"videos/{key}/from_timestamp": begin, f"videos/{key}/to_timestamp": begin + length / self.rate}
            stats[key] = image_stats(video, rows.frames[video.name].tolist())
        exact = columns | {"timestamp": np.arange(length) / self.rate}
        stats |= {name: table_stats(v if v.ndim == 2 else v[:, None]) for name, v in exact.items()}
        self.entries.append(entry)
        self.stats.append(stats)
        self.total += length

    def _add_data(self, columns: dict[str, np.ndarray]) -> dict[str, int]:
        """One row group per episode; the next file begins when this one is full."""
        table = data_table(columns)
        if self.data is not None and self.data[1].tell() > DATA_MB << 20:
            self.close()
            self.data_at += 1
        place = {"chunk_index": self.data_at // CHUNK_SIZE, "file_index": self.data_at % CHUNK_SIZE}
        if self.data is None:
            path = self.root / DATA.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "wb")  # noqa: SIM115 - closed by close
            self.data = (parquet_library().ParquetWriter(stream, table.schema, compression="snappy"), stream)
        self.data[0].write_table(table)
        return {f"data/{key}": value for key, value in place.items()}

    def close(self) -> None:
        """Close the data file."""
        if self.data is not None:
            self.data[0].close()
            self.data[1].close()
            self.data = None

    def _roll_videos(self, rows: _Rows) -> None:
        """Write the waiting videos out when the next ones would make a file too large."""
        size = max((video.path.stat().st_size for video in rows.episode.videos), default=0)
        if self.bytes and self.bytes + size > VIDEO_MB << 20:
            self._write_videos()
            self.video_at += 1
        self.bytes += size

    def _write_videos(self) -> None:
        for key, parts in self.waiting.items():
            place = {"chunk_index": self.video_at // CHUNK_SIZE, "file_index": self.video_at % CHUNK_SIZE}
            path = self.root / VIDEO.format(video_key=key, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            _join(parts, path, self.rate)
            clip = probe_clip(path)
            self.features[key]["shape"][:2] = [clip.height, clip.width]
            self.features[key]["info"] |= {
                "video.height": clip.height,
                "video.width": clip.width,
                "video.codec": clip.codec,
                "video.pix_fmt": clip.pixels,
            }
        self.waiting, self.bytes = {}, 0

    def finish(self, tasks: dict[str, int], robot_type: str | None) -> dict[str, Any]:
        """Close the files and write `meta/`."""
        self.close()
        self._write_videos()
        write_episodes(self.root, self.entries, self.stats)
        write_tasks(self.root, tasks)
        pooled = {name: pooled_stats([stats[name] for stats in self.stats]) for name in self.stats[0]}
        plain = {name: {key: _plain(values) for key, values in stats.items()} for name, stats in pooled.items()}
        write_json(self.root / "meta" / "stats.json", plain)
        whole = int(self.rate) if self.rate == int(self.rate) else self.rate
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": len(self.entries),
            "total_frames": self.total,
            "total_tasks": len(tasks),
            "chunks_size": CHUNK_SIZE,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": whole,
            "splits": {"train": f"0:{len(self.entries)}"},
            "data_path": DATA,
            "video_path": VIDEO if any(f["dtype"] == "video" for f in self.features.values()) else None,
            "features": self.features,
        }
        write_json(self.root / "meta" / "info.json", info)
        return info


def _plain(values: np.ndarray) -> Any:
    """An array as lists; what is not finite becomes null, for JSON has no NaN."""
    holes = np.empty(values.shape, object)
    holes[...] = values
    if values.dtype.kind == "f":
        holes[~np.isfinite(values)] = None
    return holes.tolist()


def _join(parts: Sequence[tuple[Clip, np.ndarray, int]], path: Path, rate: float) -> None:
    """Videos one after another at a steady rate: packets as they are where each frame is shown once, else encoded."""
    stretches, total = [], sum(len(frames) for _, frames, _ in parts)
    times = np.arange(total) / rate
    same = len({(clip.codec, clip.width, clip.height, clip.setup) for clip, _, _ in parts}) == 1
    for clip, frames, first in parts:
        begin, end = first + int(frames[0]), first + int(frames[-1]) + 1
        whole = end - begin == len(frames) and bool((np.diff(frames) == 1).all())
        same = same and whole and bool(clip.keys[begin]) and (end == len(clip) or bool(clip.keys[end]))
        stretches.append((clip, begin, len(frames)))
    if same:
        join_clips(stretches, path, times)
        return

    def pictures() -> Any:
        for clip, frames, first in parts:
            wanted = np.unique(frames)
            repeats = np.bincount(np.searchsorted(wanted, frames))
            for pixels, count in zip(read_frames(clip.path, (first + wanted).tolist()), repeats, strict=True):
                yield from [pixels] * int(count)

    write_clip(pictures(), times, path)


def _features(rows: _Rows, rate: float) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {}
    for video in rows.episode.videos:
        clip = probe_clip(video.path)
        features[IMAGES + video.name] = {
            "dtype": "video",
            "shape": [clip.height, clip.width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": clip.height,
                "video.width": clip.width,
                "video.codec": clip.codec,
                "video.pix_fmt": clip.pixels,
                "video.is_depth_map": False,
                "video.fps": int(rate) if rate == int(rate) else rate,
                "video.channels": 3,
                "has_audio": False,
            },
        }
    for name in sorted(rows.tables, key=lambda name: (name != STATE, name != ACTION, name)):
        labels = rows.names[name]
        shape = [rows.tables[name].shape[1]]
        features[name] = {"dtype": "float32", "shape": shape, "names": list(labels) if labels else None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for name in ("frame_index", "episode_index", "index", "task_index"):
        features[name] = {"dtype": "int64", "shape": [1], "names": None}
    return features


def _layout(features: dict[str, dict[str, Any]]) -> str:
    return ", ".join(f"{name} {value['shape']}" for name, value in features.items() if value["shape"] != [1])
