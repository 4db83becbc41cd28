"""Readers of other people's layouts: numbers and names come out, disagreement is refused with both counts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.annotated import open_annotated
from gworld.data.clips import probe_clip, read_frames
from gworld.data.ingest import open_source
from gworld.data.lerobot import open_lerobot
from gworld.data.mcap import read_messages
from gworld.data.rlds import open_rlds
from gworld.data.robomimic import open_robomimic
from gworld.data.rosbag import open_rosbag
from gworld.data.split import parse_agents, split_agents
from gworld.data.tfrecord import crc32c, example_bytes, list_records, parse_example
from gworld.errors import InputError
from tests.episodes import moving_square, small_video
from tests.recordings import make_annotated, make_bag, make_rlds, make_robomimic


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA
    long = np.random.default_rng(0).bytes(100_003)
    crc = 0xFFFFFFFF
    for byte in long:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(long) == crc ^ 0xFFFFFFFF


def test_examples_go_round() -> None:
    numbers = np.array([0, 1, -1, 2**62, -(2**63), 300], np.int64)
    features = {"a": np.arange(5, dtype=np.float32), "b": numbers, "c": [b"", b"xyz"], "d/\u00e9": [b"1"]}
    back = parse_example(example_bytes(features), "test")
    assert set(back) == set(features) and back["c"] == [b"", b"xyz"]
    assert np.array_equal(back["a"], features["a"]) and np.array_equal(back["b"], numbers)


def test_rlds_is_read(tmp_path: Path) -> None:
    source = open_rlds(make_rlds(tmp_path / "set"), 5.0)
    assert len(source) == 2 and "5 Hz" in source.notes[0]
    episode = source.read(1, tmp_path)
    assert len(episode) == 8 and float(episode.times[1]) == 0.2 and episode.task == "pour"
    assert episode.actions["robot"].shape == (8, 7) and episode.joints["robot"].shape == (8, 6)
    assert set(episode.signals) == {"reward", "state"}  # the embedding is left out
    assert [video.name for video in episode.videos] == ["image_0"]  # the black slot is left out
    assert probe_clip(episode.videos[0].path).codec == "mjpeg"
    with pytest.raises(InputError, match="--rate"):
        open_rlds(tmp_path / "set")


def test_rlds_damage_is_found(tmp_path: Path) -> None:
    folder = make_rlds(tmp_path / "set")
    shard = next(folder.glob("*.tfrecord*"))
    data = shard.read_bytes()
    middle = list_records(shard)[0].offset + 100
    shard.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(InputError, match="fails its checksum"):
        open_rlds(folder, 5.0).read(0, tmp_path)
    assert len(open_rlds(folder, 5.0).read(1, tmp_path)) == 8
    shard.write_bytes(data[:-5])
    with pytest.raises(InputError, match="in record 1"):
        open_rlds(folder, 5.0)
    shard.write_bytes(data)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["3"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"in records, has 2, dataset_info.json has 3"):
        open_rlds(folder, 5.0)


def test_robomimic_is_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = make_robomimic(tmp_path / "two.hdf5")
    source = open_robomimic(path)
    episode = source.read(1, tmp_path)
    assert source.names == ("demo_0", "demo_1") and float(episode.times[-1]) == pytest.approx(9 / 20)
    with h5py.File(path) as file:
        demo = file["data/demo_1"]
        assert np.allclose(episode.actions["robot1"], demo["actions"][:, 7:], atol=1e-6)
        joints = np.concatenate([demo["obs/robot0_joint_pos"], demo["obs/robot0_gripper_qpos"]], axis=1)
        assert np.allclose(episode.joints["robot0"], joints, atol=1e-6)
    assert episode.success is True and [video.name for video in episode.videos] == ["agentview"]
    frames = list(read_frames(episode.videos[0].path))
    errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, moving_square(10, 16), strict=True)]
    assert max(errors) < 6


def test_robomimic_that_disagrees_is_refused(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = make_robomimic(tmp_path / "two.hdf5")
    with h5py.File(path, "a") as file:
        file["data/demo_0"].attrs["num_samples"] = 11
        del file["data/demo_1/obs/object"]
        file["data/demo_1/obs/object"] = np.zeros((9, 2))
        del file["data"].attrs["env_args"]
    with pytest.raises(InputError, match="--rate 20"):
        open_robomimic(path)
    source = open_robomimic(path, 20.0)
    with pytest.raises(InputError, match="`num_samples` has 11, the table of actions has 10"):
        source.read(0, tmp_path)
    with pytest.raises(InputError, match="obs/object, in rows, has 9, the table of actions has 10"):
        source.read(1, tmp_path)


def test_a_link_out_of_a_robomimic_file_is_not_followed(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path, other = make_robomimic(tmp_path / "two.hdf5"), make_robomimic(tmp_path / "other.hdf5")
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/object"]
        file["data/demo_0/obs/object"] = h5py.ExternalLink(str(other), "/data/demo_1/obs/object")
    with pytest.raises(InputError, match="link to another file"):
        open_robomimic(path).read(0, tmp_path)


def test_annotated_videos_are_read(tmp_path: Path) -> None:
    source = open_annotated(make_annotated(tmp_path / "set"))
    droid, bridge = source.read(0, tmp_path), source.read(1, tmp_path)
    assert float(droid.times[1]) == pytest.approx(1 / 15) and droid.actions["robot"].shape == (30, 8)
    assert [(v.name, len(v.times)) for v in droid.videos] == [("exterior_1", 10), ("exterior_2", 10), ("wrist", 10)]
    assert droid.success is True and set(droid.signals) == {"state.cartesian_position"}
    assert bridge.actions["robot"].shape == (10, 7) and torch.isnan(bridge.actions["robot"][-1]).all()
    assert bridge.signals["state"].shape == (10, 7) and bridge.task == "fold"


def test_annotated_videos_that_disagree_are_refused(tmp_path: Path) -> None:
    root = make_annotated(tmp_path / "set")
    small_video(root / "videos/0/1.mp4", 9, 5)
    small_video(root / "videos/1/rgb.mp4", 12, 5)
    with pytest.raises(InputError, match=r"`0.mp4`, in frames, has 10, `1.mp4` has 9"):
        open_annotated(root).read(0, tmp_path)
    with pytest.raises(InputError, match=r"actions has 9, the steps between frames of the video has 11"):
        open_annotated(root).read(1, tmp_path)


@pytest.mark.parametrize("packing", ["zstd", "lz4", ""])
def test_bags_are_read_as_the_library_reads_them(tmp_path: Path, packing: str) -> None:
    reader = pytest.importorskip("mcap.reader")
    decoder = pytest.importorskip("mcap_ros2.decoder")
    path = make_bag(tmp_path / "two_arms.mcap", packing)
    episode = open_rosbag(path).read(0, tmp_path)
    logged: dict[str, list[tuple[int, list[float]]]] = {}
    with open(path, "rb") as stream:
        made = reader.make_reader(stream, decoder_factories=[decoder.DecoderFactory()])
        for _, channel, message, decoded in made.iter_decoded_messages():
            values = getattr(decoded, "position", None) or getattr(decoded, "data", [])
            logged.setdefault(channel.topic, []).append((message.publish_time, list(values)))
    assert {topic: len(rows) for topic, rows in logged.items()} == {
        topic: sum(message.topic.name == topic for message in read_messages(path)) for topic in logged
    }
    for side in ("left", "right"):
        states = np.array([values for _, values in logged[f"/{side}/joint_states"]])
        assert np.allclose(episode.joints[side], states, atol=1e-6)
    assert episode.names["joints/left"] == ("a", "b")
    right = np.array([values for _, values in logged["/right/command"]])
    held = right[np.minimum(np.floor(np.arange(200) * 0.4 + 1e-6).astype(int), 79)]
    assert np.allclose(episode.actions["right"], held)


def test_gaps_in_a_bag_are_unknown(tmp_path: Path) -> None:
    pytest.importorskip("mcap_ros2")
    episode = open_rosbag(make_bag(tmp_path / "two_arms.mcap")).read(0, tmp_path)
    lost = torch.isnan(episode.actions["left"][:, 0])
    # The last command before the gap is at 0.95 s and holds for 0.25 s; the next one comes at 2.5 s.
    silent = (episode.times > 1.2 + 1e-6) & (episode.times < 2.5 - 1e-6)
    edge = (episode.times - 1.2).abs() < 1e-6
    assert torch.equal(lost | edge, silent | edge) and not torch.isnan(episode.actions["right"]).any()


def test_pictures_of_a_bag_keep_their_times(tmp_path: Path) -> None:
    pytest.importorskip("mcap_ros2")
    episode = open_rosbag(make_bag(tmp_path / "two_arms.mcap")).read(0, tmp_path)
    assert [video.name for video in episode.videos] == ["camera/image_raw", "wrist/image/compressed"]
    for video in episode.videos:
        assert torch.allclose(video.times, torch.arange(40, dtype=torch.float64) / 10 + 0.007)
        frames = list(read_frames(video.path))
        errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, moving_square(40, 16), strict=True)]
        assert max(errors) < 8, video.name  # colours in order, encoded once
    assert probe_clip(episode.videos[1].path).codec == "mjpeg"


def test_a_bag_that_was_not_closed_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("mcap_ros2")
    path = make_bag(tmp_path / "two_arms.mcap")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="mcap recover"):
        open_rosbag(path).read(0, tmp_path)


def test_what_is_no_data_set_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match="none of the data sets"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(InputError, match="does not exist"):
        open_source(tmp_path / "b")


@pytest.mark.parametrize(
    ("folder", "episodes", "actions", "fps"),
    [
        ("bridge", 3, 7, 3),
        ("rt1", 2, 7, 3),
        ("language_table", 1, 2, 4),
        ("octo_bridge64", 25, 7, 5),
        ("droid", 7, 8, 5),
    ],
)
def test_real_recordings(tmp_path: Path, real_data: Path, folder: str, episodes: int, actions: int, fps: int) -> None:
    source = open_source(real_data / folder, 5.0)
    assert len(source) == episodes
    for index in {0, episodes - 1}:
        episode = source.read(index, tmp_path)
        assert episode.actions["robot"].shape == (len(episode), actions)
        for video in episode.videos:
            assert float(video.times.diff().median()) == pytest.approx(1 / fps)
            assert float(video.times[-1]) <= float(episode.times[-1]) + 1e-6
            assert len(list(read_frames(video.path, [0, len(video.times) - 1], 32))) == 2


def test_g1_is_two_agents(tmp_path: Path, real_data: Path) -> None:
    source = open_lerobot(real_data / "g1_inspire")
    assert len(source) == 4 and "96 of 100" in source.notes[0]
    episode = split_agents(source.read(3, tmp_path), parse_agents("left=*left*,right=*right*"))
    assert {name: tuple(table.shape) for name, table in episode.actions.items()} == {
        "left": (445, 13),
        "right": (445, 13),
    }
    moved = {name: float(table[:, :7].diff(dim=0).abs().sum()) for name, table in episode.joints.items()}
    assert moved["right"] > 5 * moved["left"]  # the left arm hardly moves
    assert probe_clip(episode.videos[0].path).codec == "av1"
