"""The data sets that are fuzzed: written small, and read as `gworld ingest` reads them, first episode and last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DataTarget:
    """How to write a small valid data set to a path, and how to read it."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    shell: str | None = None


def _ingested(path: Path) -> tuple[Any, ...]:
    from gworld.data.ingest import open_source, read_one

    source = open_source(path, 10.0)
    return tuple(read_one(source, index) for index in sorted({0, len(source) - 1}))


def _stored(path: Path) -> tuple[Any, ...]:
    from gworld.data.store import open_episodes, read_episode

    episodes = open_episodes(path)
    return tuple(read_episode(episodes, index) for index in sorted({0, len(episodes) - 1} & set(range(len(episodes)))))


def _make_store(path: Path) -> None:
    from gworld.data.store import EpisodeWriter
    from tests.episodes import small_episode, small_video

    video = small_video(path.parent.parent / "front.mp4", count=4)
    with EpisodeWriter(path) as writer:
        writer.add(small_episode(video))
    video.unlink()


def _make_lerobot_v3(path: Path) -> None:
    import tempfile

    from gworld.data.ingest import ingest, open_source
    from gworld.data.lerobot_write import write_lerobot
    from gworld.data.store import open_episodes
    from tests.recordings import make_lerobot_v2

    with tempfile.TemporaryDirectory() as folder:
        make_lerobot_v2(Path(folder) / "v2", lengths=(5, 4))
        ingest(open_source(Path(folder) / "v2"), Path(folder) / "store")
        write_lerobot(open_episodes(Path(folder) / "store"), path)


def _make(name: str, **options: Any) -> Callable[[Path], Any]:
    def write(path: Path) -> Any:
        import tests.recordings

        return getattr(tests.recordings, f"make_{name}")(path, **options)

    return write


def _make_bag(path: Path) -> None:
    from tests.recordings import make_bag

    make_bag(path, "", crc=False)


DATA_TARGETS = {
    "episodes": DataTarget("case", _make_store, _stored),
    "lerobot_v2": DataTarget("case", _make("lerobot_v2", lengths=(5,)), _ingested),
    "lerobot_v3": DataTarget("case", _make_lerobot_v3, _ingested),
    "annotated": DataTarget("case", _make("annotated", steps=12), _ingested),
    "robomimic": DataTarget("case.hdf5", _make("robomimic", steps=4), _ingested),
    "rlds": DataTarget("case.tfrecord", lambda path: _single_shard(path), _ingested, shell="tfrecord"),
    "mcap": DataTarget("case.mcap", _make_bag, _ingested),
}


def _single_shard(path: Path) -> None:
    from tests.recordings import make_rlds

    folder = path.parent.parent / "shards"
    shard = next(make_rlds(folder, steps=4).glob("*.tfrecord*"))
    shard.rename(path)
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()


def check_episode(episode: Any) -> None:
    """Raise unless an episode is sound: increasing finite times, tables of its length without infinities."""
    import torch

    from gworld.scene.episode import TABLES

    assert len(episode) > 0 and torch.isfinite(episode.times).all(), "the clock is not finite"
    for kind in TABLES:
        for name, table in getattr(episode, kind).items():
            assert table.shape[0] == len(episode), f"{kind}/{name} has {len(table)} rows"
            assert not torch.isinf(table).any(), f"{kind}/{name} is infinite"
    for video in episode.videos:
        assert torch.isfinite(video.times).all() and (video.times.diff() > 0).all(), f"frames of {video.name} go back"
