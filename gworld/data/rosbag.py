"""ROS 2 bags (MCAP) as episodes: joint states, commands and pictures of every topic on one clock.

The clock is that of the joint states that come most often (else of the commands); commands hold until the next one,
states go straight between measurements, and what was not recorded is NaN. Topics belong to the agent that their
namespace names: `/left/joint_states` and `/left/joint_command` to `left`, or all to `robot` where there is one robot.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.data.clips import MAX_PIXELS, write_clip, write_pictures
from gworld.data.mcap import Cdr, Message, Topic, read_messages
from gworld.data.source import ROBOT, Source, numbers
from gworld.data.sync import between, held
from gworld.errors import InputError
from gworld.scene.episode import Episode, Video

COMMAND = re.compile(r"command|cmd|action|target|desired|goal|leader", re.IGNORECASE)
STAMP_SLACK = 5 * 10**9
"""A message's own stamp is believed when it is this near, in nanoseconds, to when it was logged."""
TWIST = ("vx", "vy", "vz", "wx", "wy", "wz")
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


@dataclass
class _Log:
    """Numbers of one topic: stamps in nanoseconds, and per column its stamps and values."""

    stamps: list[int] = field(default_factory=list)
    columns: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    def add(self, stamp: int, names: list[str], values: np.ndarray) -> None:
        self.stamps.append(stamp)
        for name, value in zip(names, values.tolist(), strict=True):
            times, numbers = self.columns.setdefault(name, ([], []))
            times.append(stamp)
            numbers.append(value)


def is_rosbag(path: Path) -> bool:
    """Whether a path is an MCAP file or a folder of them."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".mcap" else []
    return sorted(path.glob("*.mcap"))


def open_rosbag(path: str | Path) -> Source:
    """A bag as one episode: an MCAP file, or a rosbag2 folder with its `metadata.yaml`; other folders hold one each."""
    root = Path(path)
    files = _files(root)
    if not files:
        raise InputError(f"`{root}` holds no .mcap file. Convert the bag with `ros2 bag convert`.")
    groups = [files] if (root / "metadata.yaml").is_file() else [[file] for file in files]
    names = tuple(group[0].stem for group in groups)

    def read(index: int, scratch: Path) -> Episode:
        return _read(groups[index], scratch)

    return Source("ROS 2 bag", root, names, read)


def _read(files: list[Path], scratch: Path) -> Episode:
    logs: dict[Topic, _Log] = {}
    pictures: dict[Topic, list[int]] = {}
    try:
        for message in _all(files):
            if message.topic.encoding != "cdr":
                continue
            if message.topic.kind in _PICTURES:
                pictures.setdefault(message.topic, []).append(_stamp(Cdr(message.data).header(), message.time))
            elif message.topic.kind in _READERS:
                stamp, names, values = _READERS[message.topic.kind](Cdr(message.data))
                logs.setdefault(message.topic, _Log()).add(_stamp(stamp, message.time), names, values)
        return _episode(files, logs, pictures, scratch)
    except (ValueError, OverflowError, MemoryError, struct.error) as error:
        raise InputError(f"`{files[0]}` holds a damaged message ({str(error)[:100]}). Record it again.") from error


def _all(files: list[Path]) -> Iterator[Message]:
    for file in files:
        yield from read_messages(file)


def _stamp(own: int, logged: int) -> int:
    return own if abs(own - logged) <= STAMP_SLACK else logged


def _episode(files: list[Path], logs: dict[Topic, _Log], pictures: dict[Topic, list[int]], scratch: Path) -> Episode:
    states = {t: log for t, log in logs.items() if t.kind == _JOINT_STATE and not COMMAND.search(t.name)}
    poses = {t: log for t, log in logs.items() if t.kind == _POSE and not COMMAND.search(t.name)}
    commands = {t: log for t, log in logs.items() if t not in states and t not in poses}
    clocks = sorted((states or commands or poses).items(), key=lambda item: (-len(item[1].stamps), item[0].name))
    if not clocks:
        raise InputError(
            f"`{files[0]}` holds no joint states, commands or poses that are read; topics with some needed."
        )
    stamps = np.unique(np.array(clocks[0][1].stamps, np.int64))
    begin = int(stamps[0])
    clock = (stamps - begin) * 1e-9
    agents = _agents(sorted(t.name for t in states), sorted(t.name for t in commands))
    tables: dict[str, Any] = {"joints": {}, "actions": {}, "signals": {}}
    names: dict[str, tuple[str, ...]] = {}
    for kind, group, resample in (
        ("joints", states, between),
        ("actions", commands, held),
        ("signals", poses, between),
    ):
        merged: dict[str, dict[str, np.ndarray]] = {}
        for topic, log in sorted(group.items(), key=lambda item: item[0].name):
            owner = topic.name.strip("/") if kind == "signals" else agents[topic.name]
            columns = merged.setdefault(owner, {})
            for name, (times, values) in log.columns.items():
                label = name if name not in columns else f"{topic.name.rpartition('/')[2]}/{name}"
                columns[label] = _resampled(times, values, begin, clock, resample)
        for owner, columns in merged.items():
            if columns:
                tables[kind][owner] = numbers(np.stack(list(columns.values()), axis=1), kind, files[0], len(clock))
                names[f"{kind}/{owner}"] = tuple(columns)
    return Episode(
        torch.from_numpy(clock),
        **tables,
        videos=tuple(
            _video(files, topic, stamps, begin, scratch)
            for topic, stamps in sorted(pictures.items(), key=lambda item: item[0].name)
            if len(stamps) > 1
        ),
        source=f"ROS 2 bag {files[0].stem}",
        names=names,
    )


def _agents(states: list[str], commands: list[str]) -> dict[str, str]:
    """The agent of each topic: by namespace where several robots report, else the one robot."""
    if len(states) <= 1 and (states or len(commands) == 1):
        return dict.fromkeys([*states, *commands], ROBOT)
    return {name: name.strip("/").rpartition("/")[0] or ROBOT for name in [*states, *commands]}


def _resampled(
    stamps: list[int], values: list[float], begin: int, clock: np.ndarray, how: Callable[..., np.ndarray]
) -> np.ndarray:
    order, first = np.unique(np.array(stamps, np.int64), return_index=True)
    times = (order - begin) * 1e-9
    gap = max(5.0 * float(np.median(np.diff(times))), 0.25) if len(times) > 1 else 0.25
    return how(times, np.array(values)[first][:, None], clock, gap)[:, 0]


def _video(files: list[Path], topic: Topic, stamps: list[int], begin: int, scratch: Path) -> Video:
    """Pictures of a topic as a video; stamps out of order or twice are put right by taking each time once."""
    order, first = np.unique(np.array(stamps, np.int64), return_index=True)
    times = (order - begin) * 1e-9
    if (np.diff(first) < 0).any():
        raise InputError(f"`{files[0]}`: the pictures of {topic.name} are not in order of their stamps.")
    kept = set(first.tolist())
    name = topic.name.strip("/")
    target = scratch / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:100]}.mp4"
    chosen = (m for i, m in enumerate(m for m in _all(files) if m.topic == topic) if i in kept)
    if topic.kind == _IMAGE:
        write_clip((_pixels(Cdr(message.data), files[0]) for message in chosen), times, target)
    else:
        write_pictures([_compressed(Cdr(message.data)) for message in chosen], times, target)
    return Video(name, target, torch.from_numpy(times))


def _pixels(cdr: Cdr, file: Path) -> np.ndarray:
    cdr.header()
    height, width, encoding = int(cdr.number("I")), int(cdr.number("I")), cdr.text()
    cdr.number("B")
    step, data = int(cdr.number("I")), cdr.bytes()
    depth = _CHANNELS.get(encoding)
    if depth is None:
        raise InputError(f"`{file}` holds pictures in {encoding[:30]!r}; {', '.join(_CHANNELS)} are read.")
    if not 0 < height * width <= MAX_PIXELS or step < width * depth or len(data) < step * height:
        raise ValueError(f"a picture of {width} x {height} with {len(data)} bytes")
    rows = np.frombuffer(data, np.uint8, step * height).reshape(height, step)[:, : width * depth]
    pixels = rows.reshape(height, width, depth)
    if depth == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[..., 2::-1] if encoding.startswith("bgr") else pixels[..., :3]


def _compressed(cdr: Cdr) -> bytes:
    cdr.header()
    cdr.text()
    return cdr.bytes()


def _joint_state(cdr: Cdr) -> tuple[int, list[str], np.ndarray]:
    stamp, names, position = cdr.header(), cdr.texts(), cdr.array()
    if len(names) != len(position):
        raise ValueError(f"{len(names)} joints with {len(position)} positions")
    return stamp, names, position


def _trajectory(cdr: Cdr) -> tuple[int, list[str], np.ndarray]:
    """The first point of a trajectory is what is asked for now."""
    stamp, names = cdr.header(), cdr.texts()
    points = cdr.count(24)
    if points == 0:
        return stamp, [], np.zeros(0)
    position = cdr.array()
    if len(names) != len(position):
        raise ValueError(f"{len(names)} joints with {len(position)} positions")
    return stamp, names, position


def _plain(names: tuple[str, ...], stamped: bool) -> Callable[[Cdr], tuple[int, list[str], np.ndarray]]:
    def read(cdr: Cdr) -> tuple[int, list[str], np.ndarray]:
        return cdr.header() if stamped else 0, list(names), cdr.plain(len(names))

    return read


def _multi(code: str) -> Callable[[Cdr], tuple[int, list[str], np.ndarray]]:
    def read(cdr: Cdr) -> tuple[int, list[str], np.ndarray]:
        for _ in range(cdr.count(12)):
            cdr.text()
            cdr.number("I")
            cdr.number("I")
        cdr.number("I")
        values = cdr.array(code)
        return 0, [str(index) for index in range(len(values))], values

    return read


_JOINT_STATE, _POSE = "sensor_msgs/msg/JointState", "geometry_msgs/msg/PoseStamped"
_IMAGE, _JPEG = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_PICTURES = (_IMAGE, _JPEG)
_READERS: dict[str, Callable[[Cdr], tuple[int, list[str], np.ndarray]]] = {
    _JOINT_STATE: _joint_state,
    _POSE: _plain(POSE, True),
    "trajectory_msgs/msg/JointTrajectory": _trajectory,
    "std_msgs/msg/Float64MultiArray": _multi("d"),
    "std_msgs/msg/Float32MultiArray": _multi("f"),
    "std_msgs/msg/Float64": _plain(("value",), False),
    "geometry_msgs/msg/Twist": _plain(TWIST, False),
    "geometry_msgs/msg/TwistStamped": _plain(TWIST, True),
}
