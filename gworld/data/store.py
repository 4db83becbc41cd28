"""The episode store: one folder per finished episode and one line for each in `index.jsonl`.

    episodes/index.jsonl                    {"episode": 0, "steps": 167, "frames": {"wrist": 56}, ...} per line
    episodes/episode-000000/episode.json    names, cameras, where it came from
    episodes/episode-000000/steps.parquet   a row per step: time, actions/AGENT, joints/AGENT, signals/NAME, link_poses
    episodes/episode-000000/frames.parquet  a row per video frame: video, time
    episodes/episode-000000/CAMERA.mp4

An episode is written into `episode-N.tmp/`, flushed to disk, renamed, and only then entered into the index, so that a
writer killed at any moment leaves finished episodes and nothing half-written. Counts are nowhere but in the index;
reading checks that the rows and the frames agree with it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from gworld.data.parquet import count_rows
from gworld.data.record import load_record, record_frames, save_record
from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, existing_file, folder_lock, parse_json
from gworld.scene.episode import Episode

INDEX = "index.jsonl"
MAX_INDEX_BYTES = 1 << 30
_FOLDER = re.compile(r"^episode-(\d{6,9})(\.tmp)?$")


@dataclass(frozen=True)
class Entry:
    """One line of the index: an episode's number, steps, frames by video, action columns by agent.

    `key` tells which recording it was made from, so that an interrupted ingest goes on where it stopped.
    """

    episode: int
    steps: int
    seconds: float
    frames: Mapping[str, int] = field(default_factory=dict)
    agents: Mapping[str, int] = field(default_factory=dict)
    behaviour: str = "unknown"
    success: bool | None = None
    key: str = ""


@dataclass(frozen=True)
class EpisodeSet:
    """A store and its index as it was when opened."""

    folder: Path
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)


def episode_folder(folder: str | Path, number: int) -> Path:
    """Where episode `number` of a store lies."""
    return Path(folder) / f"episode-{number:06d}"


def is_episode_store(path: str | Path) -> bool:
    """Whether a path is a folder with an index of episodes."""
    return (Path(path) / INDEX).is_file()


def open_episodes(folder: str | Path) -> EpisodeSet:
    """Read a store's index; raises `InputError` when it is damaged anywhere but in a last line that was cut short."""
    return EpisodeSet(Path(folder), _read_index(Path(folder) / INDEX)[0])


def read_episode(episodes: EpisodeSet, position: int) -> Episode:
    """The episode at `position` of the index (not its number), tensors in memory, videos as paths.

    Raises `InputError`, with both counts, when index, Parquet rows and video frames disagree.
    """
    if not -len(episodes) <= position < len(episodes):
        raise UsageError(f"`{episodes.folder}` has {len(episodes)} episodes; number {position} was asked for.")
    return _load(episodes.folder, episodes.entries[position])


class EpisodeWriter:
    """Adds episodes to a store, which it creates or continues and locks while open.

    What a killed writer left is put right first: an index line cut short is dropped, an episode that was renamed but
    not entered is entered, half-written folders go. Raises `UsageError` when another process writes to the store.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._lock = folder_lock(self.folder)
        self._lock.__enter__()
        try:
            self.entries = list(_recover(self.folder))
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary(), ignore_errors=True)
        self._lock.__exit__(kind, error, trace)

    @property
    def keys(self) -> frozenset[str]:
        """The recordings that are in the store already."""
        return frozenset(entry.key for entry in self.entries if entry.key)

    def scratch(self) -> Path:
        """The folder in which the next episode is made: videos written here are taken over without copying them."""
        folder = self._temporary()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def add(self, episode: Episode, key: str = "") -> int:
        """Write an episode and return its number; once this returns, it is on disk and stays."""
        number, temporary = self._next(), self.scratch()
        try:
            save_record(episode, temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # nothing of it may slip into the next episode
            raise
        entry = _entry(number, episode, key)
        (temporary / "entry.json").write_text(json.dumps(asdict(entry), allow_nan=False), encoding="utf-8")
        for file in temporary.rglob("*"):
            _flush(file)
        _flush(temporary)
        temporary.rename(episode_folder(self.folder, number))
        _flush(self.folder)
        _append(self.folder, entry)
        self.entries.append(entry)
        return number

    def _next(self) -> int:
        return self.entries[-1].episode + 1 if self.entries else 0

    def _temporary(self) -> Path:
        return self.folder / f"{episode_folder(self.folder, self._next()).name}.tmp"


def _recover(folder: Path) -> tuple[Entry, ...]:
    """Drop a torn index line, remove half-written folders, enter finished episodes that the index lacks."""
    entries: tuple[Entry, ...] = ()
    if (folder / INDEX).exists():
        entries, torn = _read_index(folder / INDEX)
        if torn:
            data = (folder / INDEX).read_bytes()
            with atomic_write(folder / INDEX) as stream:
                stream.write(data[: data.rfind(b"\n") + 1])
    last = entries[-1].episode if entries else -1
    finished = []
    for place in folder.iterdir():
        match = _FOLDER.match(place.name)
        if match and match[2]:
            shutil.rmtree(place, ignore_errors=True)
        elif match and int(match[1]) > last:
            finished.append((int(match[1]), place))
    for number, place in sorted(finished):
        entry = _parse_entry(existing_file(place / "entry.json").read_bytes(), str(place / "entry.json"))
        if entry.episode != number:
            raise InputError(f"`{place}` says it is episode {entry.episode}. Move it out of the store.")
        _load(folder, entry)
        _append(folder, entry)
        entries = (*entries, entry)
    return entries


def _load(folder: Path, entry: Entry) -> Episode:
    place = episode_folder(folder, entry.episode)
    rows = count_rows(place / "steps.parquet")
    if rows != entry.steps:
        raise InputError(
            f"`{place / 'steps.parquet'}` has {rows} rows; the index says {entry.steps} steps. Ingest it again."
        )
    record = load_record(place)
    if set(record_frames(record)) != set(entry.frames):
        raise InputError(
            f"`{place}` has the videos {sorted(record_frames(record))}; the index says {sorted(entry.frames)}."
        )
    for name, frames in record_frames(record).items():
        if frames != entry.frames[name]:
            raise InputError(
                f"`{place}`: video {name!r} has {frames} frames; the index says {entry.frames[name]}. Ingest it again."
            )
    return record


def _entry(number: int, episode: Episode, key: str) -> Entry:
    times = episode.times
    return Entry(
        episode=number,
        steps=len(episode),
        seconds=round(float(times[-1] - times[0]), 6) if len(times) else 0.0,
        frames={video.name: len(video.times) for video in episode.videos},
        agents={agent: values.shape[1] for agent, values in episode.actions.items()},
        behaviour=episode.behaviour,
        success=episode.success,
        key=key,
    )


def _append(folder: Path, entry: Entry) -> None:
    with open(folder / INDEX, "ab") as stream:
        stream.write(json.dumps(asdict(entry), allow_nan=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_index(path: Path) -> tuple[tuple[Entry, ...], bool]:
    """The entries, and whether a last line without its end was left out."""
    size = existing_file(path).stat().st_size
    if size > MAX_INDEX_BYTES:
        raise InputError(f"`{path}` has {size} bytes; an index of at most {MAX_INDEX_BYTES} is read.")
    *lines, rest = path.read_bytes().split(b"\n")
    entries = tuple(_parse_entry(line, f"{path}:{number}") for number, line in enumerate(lines, 1))
    for before, after in itertools.pairwise(entries):
        if after.episode <= before.episode:
            raise InputError(f"`{path}` lists episode {after.episode} after {before.episode}; the index is damaged.")
    return entries, bool(rest)


def _parse_entry(line: bytes, source: str) -> Entry:
    data = parse_json(line, source)
    try:
        entry = Entry(**data)
        numbers = [entry.episode, entry.steps, *entry.frames.values(), *entry.agents.values()]
        texts = [entry.key, entry.behaviour, *entry.frames, *entry.agents]
        sound = all(type(value) is int and 0 <= value < 1 << 40 for value in numbers)
        sound = sound and all(isinstance(text, str) for text in texts)
        if not (sound and type(entry.seconds) in (int, float) and entry.success in (None, True, False)):
            raise ValueError("a field is of the wrong kind")
        return entry
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error)[:200]
        raise InputError(f"`{source}` is no line of an episode index ({reason}). Ingest the data again.") from error


def describe_entry(entry: Entry) -> dict[str, Any]:
    """An index line as plain values."""
    return asdict(entry)
