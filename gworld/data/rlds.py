"""RLDS data sets (Open X-Embodiment and kin): TFRecord shards whose records are whole episodes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.data.clips import write_pictures
from gworld.data.source import ROBOT, Source, numbers, same_count
from gworld.data.tfrecord import Feature, Record, list_records, read_record
from gworld.errors import InputError
from gworld.files import read_json
from gworld.scene.episode import Episode, Video

STEPS, SEEN, ACTION = "steps/", "steps/observation/", "steps/action"
MAX_WIDTH = 128
"""Wider columns are embeddings of words or pictures, which can be computed again."""
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG")


def is_rlds(path: Path) -> bool:
    """Whether a path is a TFRecord file or a folder of them."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if ".tfrecord" in path.name else []
    return sorted(file for file in path.glob("*.tfrecord*") if file.is_file())


def open_rlds(path: str | Path, rate: float | None = None) -> Source:
    """Episodes of every shard; `rate` steps per second, for the format holds no clock.

    Raises `InputError` when no rate is given, a shard is damaged, or `dataset_info.json` counts other episodes.
    """
    root = Path(path)
    if rate is None:
        raise InputError(f"`{root}` holds no clock: RLDS has none. Say how many steps a second has: `--rate 5`.")
    shards = _shards(root)
    records = [(shard, index, record) for shard in shards for index, record in enumerate(list_records(shard))]
    if not records:
        raise InputError(f"`{root}` holds no episode; TFRecord files with records are needed.")
    _check_counts(root, shards, [shard for shard, _, _ in records])
    names = tuple(f"{shard.name}:{index}" for shard, index, _ in records)

    def read(index: int, scratch: Path) -> Episode:
        return _read(records[index][2], names[index], float(rate), scratch)

    return Source("RLDS", root, names, read, (f"times are made from a rate of {rate:g} Hz",))


def _check_counts(root: Path, shards: list[Path], found: list[Path]) -> None:
    info = root / "dataset_info.json"
    if not root.is_dir() or not info.is_file():
        return
    facts = read_json(info)
    try:
        splits = {str(split["name"]): [int(count) for count in split["shardLengths"]] for split in facts["splits"]}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"`{info}` does not list its splits ({error}). Download it again.") from error
    for shard in shards:
        split = shard.name.split(".tfrecord")[0].rpartition("-")[2]
        number = shard.name.partition(".tfrecord-")[2][:5]
        lengths = splits.get(split, [])
        if number.isdigit() and int(number) < len(lengths):
            same_count(shard, "the file, in records,", found.count(shard), "dataset_info.json", lengths[int(number)])


def _read(record: Record, name: str, rate: float, scratch: Path) -> Episode:
    example = read_record(record)
    source = f"{record.path.name} {name}"
    steps = _count_steps(example, source)
    times = np.arange(steps) / rate
    tables: dict[str, Any] = {"actions": {}, "joints": {}, "signals": {}}
    names: dict[str, tuple[str, ...]] = {}
    parts: dict[str, Any] = {}
    for key in sorted(example):
        values = example[key]
        if isinstance(values, list) or not key.startswith(STEPS) or len(values) % steps or len(values) == 0:
            continue
        table = numbers(values.reshape(steps, -1), key, source, steps)
        if table.shape[1] > MAX_WIDTH or key in (STEPS + "is_first", STEPS + "is_last", STEPS + "discount"):
            continue
        if key == ACTION or key.startswith(ACTION + "/"):
            parts[key] = table
        elif key.startswith(SEEN) and "joint" in key:
            tables["joints"].setdefault(ROBOT, table)
        else:
            tables["signals"][key.removeprefix(SEEN).removeprefix(STEPS)] = table
    if parts:
        tables["actions"][ROBOT] = torch.cat(list(parts.values()), dim=1)
        if len(parts) > 1:
            names[f"actions/{ROBOT}"] = tuple(
                f"{key.rpartition('/')[2]}_{i}" for key, part in parts.items() for i in range(part.shape[1])
            )
    return Episode(
        torch.from_numpy(times),
        **tables,
        videos=_videos(example, steps, times, scratch),
        source=f"RLDS {name}",
        task=_task(example),
        names=names,
    )


def _count_steps(example: Mapping[str, Feature], source: str) -> int:
    for key in ("is_first", "is_last", "is_terminal", "reward", "language_instruction"):
        if len(values := example.get(STEPS + key, [])):
            steps = len(values)
            break
    else:
        raise InputError(f"`{source}` has no `steps/is_first`; an RLDS episode is needed.")
    for key, values in example.items():
        if isinstance(values, list) and key.startswith(SEEN) and len(values):
            same_count(source, key, len(values), "the episode, in steps,", steps)
        elif key == ACTION and len(values) % steps:
            same_count(source, f"{key}, in numbers,", len(values), "a multiple of the episode's steps,", steps)
    return steps


def _videos(example: Mapping[str, Feature], steps: int, times: np.ndarray, scratch: Path) -> tuple[Video, ...]:
    videos = []
    for key in sorted(example):
        pictures = example[key]
        if not (key.startswith(SEEN) and isinstance(pictures, list) and len(pictures) == steps):
            continue
        if not all(picture.startswith(_PICTURES) for picture in pictures) or all(map(_is_blank, set(pictures))):
            continue
        name = key.removeprefix(SEEN)
        target = scratch / f"{name.replace('/', '_')}.mp4"
        write_pictures(pictures, times, target)
        videos.append(Video(name, target, torch.from_numpy(times)))
    return tuple(videos)


@lru_cache(maxsize=256)
def _is_blank(picture: bytes) -> bool:
    """Whether a picture is of one colour: a camera slot that was not used."""
    import io

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > 1 << 26:
                return False
            return all(low == high for low, high in image.convert("RGB").getextrema())
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # what cannot be decoded is reported when the video is made


def _task(example: Mapping[str, Feature]) -> str:
    for key in (STEPS + "language_instruction", SEEN + "natural_language_instruction"):
        values = example.get(key, [])
        if isinstance(values, list) and values:
            return values[0].decode("utf-8", "replace")[:1000]
    return ""
