"""Robomimic and robosuite HDF5 files: `data/demo_N` with `actions` and `obs/*`, pictures as arrays."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.data.clips import write_clip
from gworld.data.source import ROBOT, Source, numbers, same_count
from gworld.errors import InputError, MissingBackendError
from gworld.files import check_memory, existing_file, parse_json
from gworld.scene.episode import Episode, Video

MAX_WIDTH = 512
EXPANSION = 1100
"""How many times its stored size an array may be: deflate packs no better than 1 : 1032."""
CHUNK = 1 << 26
_DEMO = re.compile(r"^(.*?)(\d*)$")


def is_robomimic(path: Path) -> bool:
    """Whether a path is an HDF5 file by name."""
    return path.is_file() and path.suffix.lower() in (".hdf5", ".h5")


def open_robomimic(path: str | Path, rate: float | None = None) -> Source:
    """The demonstrations of a file; `rate` steps per second where `env_args` does not name a control frequency.

    `robotK_joint_pos` (and `robotK_gripper_qpos`) become joints of agent `robotK`; actions are shared evenly among
    the robots, as robosuite concatenates them. Raises `InputError` when the file is damaged or holds no clock.
    """
    file = existing_file(path)
    with _reading(file) as data:
        names = tuple(sorted(data, key=_in_order))
        rate = rate or _control_rate(data, file)
    if not names:
        raise InputError(f"`{file}` holds no demonstration under `data`; at least one is needed.")
    if rate is None:
        raise InputError(f"`{file}` does not say its control frequency. Say how many steps a second has: `--rate 20`.")
    hertz = float(rate)

    def read(index: int, scratch: Path) -> Episode:
        with _reading(file) as data:
            return _read(_inside(data, names[index]), names[index], file, hertz, scratch)

    return Source("robomimic", file, names, read)


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingBackendError(
            f"HDF5 needs the package h5py ({error}). Run `pip install 'gworld[data]'`."
        ) from error
    try:
        with open(file, "rb") as stream, h5py.File(stream, "r") as content:
            if not isinstance(_inside(content, "data"), h5py.Group):
                raise InputError(f"`{file}`: `data` is no group; a robomimic file is needed.")
            yield content["data"]
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`{file}` cannot be read as robomimic HDF5: {reason}. Copy or export it again.") from error


def _inside(group: Any, name: str) -> Any:
    """A member of a group, unless it is a link to another file."""
    import h5py

    if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
        raise InputError(f"`{group.name}/{name}` is a link to another file, which is not followed.")
    return group[name]


def _in_order(name: str) -> tuple[str, int]:
    match = _DEMO.match(name[:200])
    return (match[1], int(match[2] or 0)) if match else (name, 0)


def _control_rate(data: Any, file: Path) -> float | None:
    text = data.attrs.get("env_args")
    if text is None:
        return None
    facts = parse_json(text if isinstance(text, bytes) else str(text).encode(), f"{file}, env_args")
    kwargs = facts.get("env_kwargs", {}) if isinstance(facts, dict) else {}
    rate = kwargs.get("control_freq") if isinstance(kwargs, dict) else None
    return float(rate) if isinstance(rate, int | float) and 0 < rate < 100_000 else None


def _read(demo: Any, name: str, file: Path, rate: float, scratch: Path) -> Episode:
    source = f"{file.name} {name}"
    actions = numbers(_array(_inside(demo, "actions"), source), "actions", source)
    steps = len(actions)
    if steps == 0:
        raise InputError(f"`{source}` has no steps.")
    if "num_samples" in demo.attrs:
        same_count(source, "`num_samples`", int(demo.attrs["num_samples"]), "the table of actions", steps)
    times = np.arange(steps) / rate
    joints: dict[str, list[torch.Tensor]] = {}
    signals: dict[str, torch.Tensor] = {}
    videos = []
    seen = _inside(demo, "obs") if "obs" in demo else {}
    for key in sorted(seen):
        values = _inside(seen, key)
        same_count(source, f"obs/{key}, in rows,", len(values), "the table of actions", steps)
        if values.ndim == 4 and values.dtype == np.uint8 and values.shape[3] == 3:
            videos.append(_video(values, key, times, scratch, source))
        elif values.ndim <= 2 and values.size <= steps * MAX_WIDTH:
            table = numbers(_array(values, source), f"obs/{key}", source, steps)
            match = re.fullmatch(r"(robot\d+)_(joint_pos|gripper_qpos)", key)
            if match:
                joints.setdefault(match[1], []).insert(0 if match[2] == "joint_pos" else 99, table)
            else:
                signals[key] = table
    for key in ("rewards", "states"):
        if key in demo and _inside(demo, key).size <= steps * MAX_WIDTH:
            signals[key] = numbers(_array(demo[key], source), key, source, steps)
    robots = sorted(joints) or [ROBOT]
    width = actions.shape[1] // len(robots)
    if width * len(robots) != actions.shape[1]:
        raise InputError(
            f"`{source}` has {actions.shape[1]} action columns for {len(robots)} robots; a share is needed."
        )
    return Episode(
        torch.from_numpy(times),
        actions={robot: actions[:, i * width : (i + 1) * width] for i, robot in enumerate(robots)},
        joints={robot: torch.cat(parts, dim=1) for robot, parts in joints.items()},
        signals=signals,
        videos=tuple(videos),
        success=bool(signals["rewards"].max() > 0) if "rewards" in signals else None,
        source=f"robomimic {source}",
    )


def _array(values: Any, source: str) -> np.ndarray:
    """A data set in memory, after its promised size was held against what is stored."""
    _check_stored(values, source)
    check_memory(2 * values.size * values.dtype.itemsize, f"reading {values.name} of `{source}`")
    return np.asarray(values[()])


def _check_stored(values: Any, source: str) -> None:
    size = values.size * values.dtype.itemsize
    if values.dtype.kind not in "fiub" or values.is_virtual or values.external:
        raise InputError(f"`{source}`: {values.name} is of type {values.dtype}, or lies elsewhere; numbers are needed.")
    if size > EXPANSION * values.id.get_storage_size() + 4096:
        raise InputError(f"`{source}`: {values.name} promises {size} bytes and stores fewer; the file is damaged.")
    if values.chunks and int(np.prod(values.chunks)) * values.dtype.itemsize > max(CHUNK, 4 * size):
        raise InputError(f"`{source}`: {values.name} is stored in pieces larger than itself; the file is damaged.")


def _video(values: Any, key: str, times: np.ndarray, scratch: Path, source: str) -> Video:
    _check_stored(values, source)
    if min(values.shape[1:3]) < 2 or values.shape[1] * values.shape[2] > 1 << 26:
        raise InputError(f"`{source}`: obs/{key} has pictures of {values.shape[1:3]} pixels; a usual size is needed.")
    target = scratch / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', key)[:100]}.mp4"
    write_clip((np.asarray(values[i]) for i in range(len(values))), times, target)
    return Video(key.removesuffix("_image"), target, torch.from_numpy(times))
