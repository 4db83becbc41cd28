"""Any recorded data set into an episode store: its kind found, agents told apart, clocks joined; resumable."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gworld.data.annotated import is_annotated, open_annotated
from gworld.data.lerobot import is_lerobot, open_lerobot
from gworld.data.rlds import is_rlds, open_rlds
from gworld.data.robomimic import is_robomimic, open_robomimic
from gworld.data.rosbag import is_rosbag, open_rosbag
from gworld.data.source import Source
from gworld.data.split import split_agents
from gworld.data.store import EpisodeWriter, is_episode_store
from gworld.data.sync import Sync, apply_sync, sync_episode
from gworld.errors import InputError, UsageError
from gworld.scene.episode import Behaviour, Episode

KINDS = "LeRobot v2 or v3, robomimic HDF5, RLDS (TFRecord), ROS 2 bags (MCAP), annotation/ beside videos/"


@dataclass(frozen=True)
class IngestReport:
    """What came of an ingest: the numbers of new episodes, how many were there before, the clocks that were found."""

    kind: str
    added: tuple[int, ...]
    skipped: int
    seconds: float
    syncs: Mapping[int, Sync]
    notes: tuple[str, ...]


def open_source(path: str | Path, rate: float | None = None) -> Source:
    """The source of whatever lies at `path`; `rate` steps per second where the format holds no clock.

    Raises `InputError` when nothing that is read lies there.
    """
    place = Path(path)
    if is_episode_store(place):
        raise InputError(f"`{place}` is an episode store already; it needs no ingest.")
    if is_lerobot(place):
        return open_lerobot(place)
    if is_robomimic(place):
        return open_robomimic(place, rate)
    if is_rlds(place):
        return open_rlds(place, rate)
    if is_rosbag(place):
        return open_rosbag(place)
    if is_annotated(place):
        return open_annotated(place)
    fact = "is none of the data sets that are read" if place.exists() else "does not exist"
    raise InputError(f"`{place}` {fact}: {KINDS}. A source of your own takes ten lines (gworld.data.source).")


def ingest(
    source: Source,
    out: str | Path,
    *,
    agents: Mapping[str, tuple[str, ...]] | None = None,
    sync: Literal["auto", "none"] = "none",
    behaviour: Behaviour | None = None,
    licence: str = "",
    limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> IngestReport:
    """Add the episodes of a source to the store `out`, made if it is not there; those it has already are skipped.

    `sync="auto"` moves videos onto the log's clock where a shift is found with confidence. Whatever stops it, finished
    episodes stay, and the same call goes on after them. Raises `InputError` for an episode that contradicts itself.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()) and not is_episode_store(out) and not (out / ".lock").exists():
        raise UsageError(f"`{out}` holds other files; choose a new folder, or an episode store to add to.")
    count = len(source) if limit is None else min(limit, len(source))
    added: list[int] = []
    syncs: dict[int, Sync] = {}
    seconds, skipped = 0.0, 0
    with EpisodeWriter(out) as writer:
        known = writer.keys
        for index, name in enumerate(source.names[:count]):
            if progress:
                progress(name, index / count)
            key = _key(source, name)
            if key in known:
                skipped += 1
                continue
            episode = source.read(index, writer.scratch())
            episode = replace(episode, behaviour=behaviour or episode.behaviour, licence=licence or episode.licence)
            episode = split_agents(episode, agents or {})
            found = None
            if sync == "auto":
                found = sync_episode(episode)
                episode = apply_sync(episode, found) if found and found.sure else episode
            number = writer.add(episode, key)
            added.append(number)
            seconds += writer.entries[-1].seconds
            if found is not None:
                syncs[number] = found
    return IngestReport(source.kind, tuple(added), skipped, seconds, syncs, source.notes)


def read_one(source: Source, index: int) -> Episode:
    """One episode of a source, without its videos where those would have to be made first."""
    scratch = Path(tempfile.mkdtemp(prefix="gworld-"))
    try:
        episode = source.read(index, scratch)
        kept = tuple(video for video in episode.videos if scratch not in video.path.parents)
        return episode if len(kept) == len(episode.videos) else replace(episode, videos=kept, cameras=None)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _key(source: Source, name: str) -> str:
    """Tells one recording from all others on this machine, without naming its folders."""
    return hashlib.sha256(f"{source.kind}\0{source.path.resolve()}\0{name}".encode()).hexdigest()[:24]
