"""Small data sets of every kind that `gworld ingest` reads, made from nothing."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gworld.data.parquet import write_columns
from gworld.data.tfrecord import example_bytes, write_records
from tests.episodes import moving_square, small_video

JOINT_STATE = """std_msgs/Header header
string[] name
float64[] position
float64[] velocity
float64[] effort
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""
MULTI_ARRAY = """std_msgs/MultiArrayLayout layout
float64[] data
================================================================================
MSG: std_msgs/MultiArrayLayout
std_msgs/MultiArrayDimension[] dim
uint32 data_offset
================================================================================
MSG: std_msgs/MultiArrayDimension
string label
uint32 size
uint32 stride
"""
IMAGE = """std_msgs/Header header
uint32 height
uint32 width
string encoding
uint8 is_bigendian
uint32 step
uint8[] data
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""
COMPRESSED = """std_msgs/Header header
string format
uint8[] data
================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
"""
START = 1_700_000_000 * 10**9


def jpeg(pixels: np.ndarray) -> bytes:
    """A picture as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def make_lerobot_v2(root: Path, lengths: tuple[int, ...] = (12, 9), fps: int = 10) -> Path:
    """A LeRobot v2.1 data set of a two-armed robot with one camera."""
    names = ["left_a", "left_b", "right_a", "right_b"]
    video = "observation.images.top"
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [4], "names": {"motors": names}},
        "action": {"dtype": "float32", "shape": [4], "names": [names]},
        video: {"dtype": "video", "shape": [32, 32, 3], "names": ["height", "width", "channel"]},
        "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    }
    for name, kind in (("timestamp", "float32"), ("frame_index", "int64"), ("episode_index", "int64")):
        features[name] = {"dtype": kind, "shape": [1], "names": None}
    features |= {name: {"dtype": "int64", "shape": [1], "names": None} for name in ("index", "task_index")}
    info = {
        "codebase_version": "v2.1",
        "total_episodes": len(lengths),
        "fps": fps,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    for folder in ("meta", "data/chunk-000", f"videos/chunk-000/{video}"):
        (root / folder).mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))
    (root / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "wander"}\n')
    lines = [json.dumps({"episode_index": i, "tasks": ["wander"], "length": n}) for i, n in enumerate(lengths)]
    (root / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    rng = np.random.default_rng(0)
    for index, count in enumerate(lengths):
        state = rng.normal(size=(count, 4)).astype(np.float32)
        columns = {
            "observation.state": state,
            "action": state + 1,
            "next.reward": np.arange(count, dtype=np.float32),
            "timestamp": (np.arange(count) / fps).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, index),
            "index": np.arange(count) + sum(lengths[:index]),
            "task_index": np.zeros(count, np.int64),
        }
        write_columns(root / f"data/chunk-000/episode_{index:06d}.parquet", columns)
        small_video(root / f"videos/chunk-000/{video}/episode_{index:06d}.mp4", count, fps)
    return root


def make_annotated(root: Path, steps: int = 30, ratio: int = 3) -> Path:
    """One DROID-like episode of three cameras, `ratio` states per frame, and one Bridge-like."""
    frames = -(-steps // ratio)
    rng = np.random.default_rng(0)
    droid: dict[str, Any] = {"texts": ["stack"], "success": 1, "raw_length": steps, "video_length": frames}
    droid["videos"] = [{"video_path": f"videos/train/0/{camera}.mp4"} for camera in range(3)]
    for key, width in (("state.joint_position", 7), ("state.cartesian_position", 6)):
        droid[f"observation.{key}"] = rng.normal(size=(steps, width)).tolist()
    droid["observation.state.gripper_position"] = rng.random(steps).tolist()
    droid["action.joint_position"] = rng.normal(size=(steps, 7)).tolist()
    droid["action.gripper_position"] = rng.random(steps).tolist()
    bridge = {"texts": ["fold"], "videos": [{"video_path": "videos/val/1/rgb.mp4"}]}
    bridge |= {"state": rng.normal(size=(frames, 7)).tolist(), "action": rng.normal(size=(frames - 1, 7)).tolist()}
    for folder in ("annotation", "videos/0", "videos/1"):
        (root / folder).mkdir(parents=True)
    (root / "annotation" / "0.json").write_text(json.dumps(droid))
    (root / "annotation" / "1.json").write_text(json.dumps(bridge))
    for camera in range(3):
        small_video(root / f"videos/0/{camera}.mp4", frames, 5)
    small_video(root / "videos/1/rgb.mp4", frames, 5)
    return root


def make_robomimic(path: Path, steps: int = 10, robots: int = 2) -> Path:
    """Two demonstrations of a two-armed task with one camera."""
    import h5py

    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "TwoArm", "env_kwargs": {"control_freq": 20}})
        for index in (0, 1):
            demo = data.create_group(f"demo_{index}")
            demo.attrs["num_samples"] = steps
            demo["actions"] = rng.normal(size=(steps, 7 * robots))
            demo["rewards"] = np.arange(steps) == steps - 1
            seen = demo.create_group("obs")
            for robot in range(robots):
                seen[f"robot{robot}_joint_pos"] = rng.normal(size=(steps, 6))
                seen[f"robot{robot}_gripper_qpos"] = rng.normal(size=(steps, 2))
            seen["object"] = rng.normal(size=(steps, 5))
            pictures = np.stack(moving_square(steps, 16))
            seen.create_dataset("agentview_image", data=pictures, compression="gzip", chunks=(1, 16, 16, 3))
    return path


def make_rlds(folder: Path, episodes: int = 2, steps: int = 8) -> Path:
    """A TFRecord shard of episodes with a JPEG camera, an unused slot, and an embedding."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    black = jpeg(np.zeros((16, 16, 3), np.uint8))
    bodies = []
    for _ in range(episodes):
        features: dict[str, Any] = {
            "steps/is_first": (np.arange(steps) == 0).astype(np.int64),
            "steps/is_last": (np.arange(steps) == steps - 1).astype(np.int64),
            "steps/action": rng.normal(size=steps * 7).astype(np.float32),
            "steps/reward": np.zeros(steps, np.float32),
            "steps/observation/state": rng.normal(size=steps * 5).astype(np.float32),
            "steps/observation/joint_pos": rng.normal(size=steps * 6).astype(np.float32),
            "steps/observation/image_0": [jpeg(frame) for frame in moving_square(steps, 16)],
            "steps/observation/image_1": [black] * steps,
            "steps/language_instruction": [b"pour"] * steps,
            "steps/language_embedding": rng.normal(size=steps * 256).astype(np.float32),
        }
        bodies.append(example_bytes(features))
    write_records(folder / "toy-train.tfrecord-00000-of-00001", bodies)
    info = {"name": "toy", "splits": [{"name": "train", "shardLengths": [str(episodes)]}]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def stamp(nanoseconds: int) -> dict[str, Any]:
    """A `std_msgs/Header` with this time."""
    return {"stamp": {"sec": nanoseconds // 10**9, "nanosec": nanoseconds % 10**9}, "frame_id": "base"}


def make_bag(path: Path, packing: str = "zstd", crc: bool = True) -> Path:
    """Two arms at 50 Hz with 20 Hz commands (the left's stop for 1.5 s), a raw and a JPEG camera at 10 Hz; 4 s.

    Written by the `mcap` and `mcap_ros2` packages: somebody else's bytes.
    """
    from mcap.writer import CompressionType
    from mcap_ros2.writer import Writer

    kind = {"zstd": CompressionType.ZSTD, "lz4": CompressionType.LZ4, "": CompressionType.NONE}[packing]
    with open(path, "wb") as stream:
        writer = Writer(stream, compression=kind, enable_crcs=crc)
        schemas = {
            name: writer.register_msgdef(name, text)
            for name, text in (
                ("sensor_msgs/msg/JointState", JOINT_STATE),
                ("std_msgs/msg/Float64MultiArray", MULTI_ARRAY),
                ("sensor_msgs/msg/Image", IMAGE),
                ("sensor_msgs/msg/CompressedImage", COMPRESSED),
            )
        }
        for topic, name, at, message in sorted(_messages(), key=lambda entry: entry[2]):
            writer.write_message(topic, schemas[name], message, log_time=at + 10**6, publish_time=at)
        writer.finish()
    return path


def _messages() -> list[tuple[str, str, int, dict[str, Any]]]:
    found: list[tuple[str, str, int, dict[str, Any]]] = []
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for index in range(200):
            at = START + index * 20_000_000
            position = [sign * index / 50.0, np.sin(index / 10.0)]
            body = {"header": stamp(at), "name": ["a", "b"], "position": position, "velocity": [], "effort": []}
            found.append((f"/{side}/joint_states", "sensor_msgs/msg/JointState", at, body))
        for index in range(80):
            at = START + index * 50_000_000
            if side == "left" and 20 <= index < 50:
                continue
            body = {"layout": {"dim": [], "data_offset": 0}, "data": [sign * index, 2.0 * index]}
            found.append((f"/{side}/command", "std_msgs/msg/Float64MultiArray", at, body))
    for index, frame in enumerate(moving_square(40, 16)):
        at = START + index * 100_000_000 + 7_000_000
        raw = {"header": stamp(at), "height": 16, "width": 16, "encoding": "bgr8", "is_bigendian": 0, "step": 48}
        raw["data"] = np.ascontiguousarray(frame[..., ::-1]).tobytes()
        found.append(("/camera/image_raw", "sensor_msgs/msg/Image", at, raw))
        packed = {"header": stamp(at), "format": "jpeg", "data": jpeg(frame)}
        found.append(("/wrist/image/compressed", "sensor_msgs/msg/CompressedImage", at, packed))
    return found
