"""Actions from every kind of file: read, units turned, limits kept, resampled; and errors a person can act on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gworld.data.parquet import write_columns
from gworld.data.source import ROBOT
from gworld.data.store import EpisodeWriter
from gworld.errors import GWorldError, InputError, UsageError
from gworld.scene.episode import Episode
from gworld.scene.world import World
from gworld.simulate.actions import read_actions, resample, swap_agent
from gworld.simulate.files import read_rollout, write_rollout
from gworld.simulate.run import simulate
from tests.acting import acting_world

TIMES = np.arange(6) / 10
LEFT = np.stack([np.linspace(0, 1, 6), np.linspace(0, -1, 6)], axis=1)
CART = np.stack([np.full(6, 0.1), np.full(6, -0.2), np.full(6, 0.5)], axis=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def write_csv(path: Path, columns: dict[str, np.ndarray]) -> Path:
    rows = [",".join("" if np.isnan(v) else repr(float(v)) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([",".join(columns), *rows]) + "\n")
    return path


def named() -> dict[str, np.ndarray]:
    parts = {f"left/{name}/position": LEFT[:, i] for i, name in enumerate(("yaw", "elbow"))}
    return parts | {f"cart/{name}/velocity": CART[:, i] for i, name in enumerate(("x", "y", "yaw"))}


def files(folder: Path) -> list[Path]:
    """The same actions in every form."""
    write_csv(folder / "a.csv", {"time": TIMES + 5, **named()})
    write_columns(folder / "a.parquet", {"timestamp": TIMES, **named()})
    write_columns(folder / "b.parquet", {"time": TIMES, "actions/left": LEFT, "actions/cart": CART})
    np.savez(folder / "a.npz", t=TIMES, left=LEFT, cart=CART)
    stacked = np.full((6, 2, 3), np.nan)
    stacked[:, 0], stacked[:, 1, :2] = CART, LEFT
    np.savez_compressed(folder / "b.npz", times=TIMES, actions=stacked, agents=np.array(["cart", "left"]))
    (folder / "a.json").write_text(json.dumps({"fps": 10, "actions": {"left": LEFT.tolist(), "cart": CART.tolist()}}))
    tables = {"left": torch.from_numpy(LEFT).float(), "cart": torch.from_numpy(CART).float()}
    with EpisodeWriter(folder / "store") as writer:
        writer.add(Episode(torch.from_numpy(TIMES), tables))
    names = ("a.csv", "a.parquet", "b.parquet", "a.npz", "b.npz", "a.json", "store", "store/episode-000000")
    return [folder / name for name in names]


def test_every_form_says_the_same(world: World, tmp_path: Path) -> None:
    for path in files(tmp_path):
        table = read_actions(path, world)
        assert set(table.values) == {"left", "cart"}, path
        np.testing.assert_allclose(table.times.numpy(), TIMES, atol=1e-9)
        np.testing.assert_allclose(table.values["left"].numpy(), LEFT, atol=1e-6)
        np.testing.assert_allclose(table.values["cart"].numpy(), CART, atol=1e-6)
        assert table.seconds == pytest.approx(0.6) and not table.clipped


def test_all_agents_in_one_array_come_in_the_worlds_order(world: World, tmp_path: Path) -> None:
    stacked = np.full((6, 3, 3), np.nan)
    stacked[:, 0], stacked[:, 1, :2] = CART, LEFT
    np.save(tmp_path / "a.npy", stacked)
    table = read_actions(tmp_path / "a.npy", world, step=0.1)
    np.testing.assert_allclose(table.values["left"].numpy(), LEFT, atol=1e-6)
    assert bool(torch.isnan(table.values["right"]).all())
    assert table.notes == (f"no clock in `{tmp_path / 'a.npy'}`: one row per step of 0.1 s",)


def test_units_are_turned_and_limits_reported(world: World, tmp_path: Path) -> None:
    values = np.array([0.0, 90.0, 180.0, np.nan])
    path = write_csv(tmp_path / "deg.csv", {"t": np.arange(4.0), "left/yaw/position [deg]": values})
    table = read_actions(path, world)
    yaw = table.values["left"][:, 0]
    assert yaw[:3].tolist() == pytest.approx([0.0, math.pi / 2, 2.0]) and math.isnan(yaw[3])
    assert bool(torch.isnan(table.values["left"][:, 1]).all())
    assert table.clipped == {"left/yaw/position": 1}


def test_each_action_holds_until_the_next(world: World, tmp_path: Path) -> None:
    times = np.array([0.0, 0.1, 0.25, 0.3])
    path = write_csv(tmp_path / "a.csv", {"t": times, "left/yaw/position": np.array([0.0, 1.0, 2.0, np.nan])})
    table = read_actions(path, world)
    yaw = resample(table, 0.05, 10)["left"][:, 0].tolist()
    assert yaw[:6] == [0, 0, 1, 1, 1, 2] and all(math.isnan(value) for value in yaw[6:])
    late = resample(table, 0.05, 2, start=0.1)["left"][:, 0].tolist()
    assert late == [1, 1]


def test_one_agents_actions_from_elsewhere(world: World, tmp_path: Path) -> None:
    paths = files(tmp_path)
    table = read_actions(paths[0], world)
    other = read_actions(write_csv(tmp_path / "b.csv", {"t": TIMES[:3], "left/yaw/position": np.full(3, 0.7)}), world)
    swapped = swap_agent(table, other, "left")
    assert swapped.values["left"][:3, 0].tolist() == pytest.approx([0.7] * 3)
    assert torch.equal(swapped.values["cart"], table.values["cart"])
    with pytest.raises(InputError, match="hold none of agent `right`"):
        swap_agent(table, other, "right")


def test_a_rollout_is_read_back_and_acted_again(world: World, tmp_path: Path) -> None:
    rollout = simulate(world, files(tmp_path)[0], step=0.1, seed=3)
    write_rollout(rollout, tmp_path / "r.parquet")
    again = read_rollout(tmp_path / "r.parquet")
    assert torch.equal(again.link_poses, rollout.link_poses) and again.link_names == rollout.link_names
    assert again.seeds == (3,)
    replayed = simulate(world, tmp_path / "r.parquet", step=0.1, seconds=0.6)
    assert torch.equal(replayed.link_poses, rollout.link_poses)
    with pytest.raises(InputError, match="is no rollout"):
        read_rollout(tmp_path / "a.parquet")


def test_one_recording_is_shared_out_to_agents_by_name(world: World, tmp_path: Path) -> None:
    columns = np.concatenate([LEFT[:, ::-1], CART], axis=1)
    episode = Episode(
        torch.from_numpy(TIMES),
        {ROBOT: torch.from_numpy(columns).float()},
        names={f"actions/{ROBOT}": ("elbow/position", "yaw/position", "c0", "c1", "c2")},
        videos=(),
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add(episode)
    table = read_actions(tmp_path / "store", world, split={"left": ("*/position",), "cart": ("c*",)})
    np.testing.assert_allclose(table.values["left"].numpy(), LEFT, atol=1e-6)  # put in order by the columns' names
    np.testing.assert_allclose(table.values["cart"].numpy(), CART, atol=1e-6)


def test_a_lerobot_data_set_of_one_robot_moves_the_one_agent(world: World, tmp_path: Path) -> None:
    alone = replace(world, entities=tuple(e for e in world.entities if e.name in ("scene", "cart", "ball")))
    meta, data = tmp_path / "set" / "meta", tmp_path / "set" / "data" / "chunk-000"
    meta.mkdir(parents=True), data.mkdir(parents=True)
    features = {"action": {"dtype": "float32", "shape": [3], "names": None}}
    info = {"codebase_version": "v2.1", "fps": 10, "features": features, "total_episodes": 1, "total_frames": 6}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    (meta / "info.json").write_text(json.dumps(info))
    (meta / "episodes.jsonl").write_text(json.dumps({"episode_index": 0, "length": 6, "tasks": ["slide"]}) + "\n")
    (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "slide"}) + "\n")
    rows = {
        "timestamp": TIMES.astype(np.float32),
        "episode_index": np.zeros(6, np.int64),
        "action": CART.astype(np.float32),
    }
    write_columns(data / "episode_000000.parquet", rows)
    table = read_actions(tmp_path / "set", alone)
    np.testing.assert_allclose(table.values["cart"].numpy(), CART, atol=1e-6)
    with pytest.raises(InputError, match="has actions of agent `robot`; the world has cart"):
        read_actions(tmp_path / "set", world)


BAD = {
    "who.csv": ("time,middle/yaw\n0,1\n", "'middle/yaw' belongs to no agent's action; there are cart"),
    "what.csv": ("time,left/nose\n0,1\n", "agent `left` has no component 'nose'; it has yaw/position, elbow/position"),
    "unit.csv": ("time,left/yaw/position [mm]\n0,1\n", "is given in 'mm'; deg or rad or mrad is needed"),
    "clock.csv": ("time,left/yaw/position\n1,1\n0,2\n", "times that do not increase"),
    "nothing.csv": ("time\n0\n", "rows of actions; one length above 0 is needed"),
    "text.csv": ("time,left/yaw/position\n0,x\n", "is no table of numbers"),
    "inf.csv": ("time,left/yaw/position\n0,inf\n", "hold infinity"),
    "a.json": ('{"fps": 10}', 'is no object with "actions"'),
    "b.json": ('{"fps": 10, "actions": {"left": [[1, 2], [3]]}}', "rows that are no numbers of one length"),
    "c.json": ('{"fps": 10, "actions": {"left": [[1, 2, 3]]}}', r"have shape \[1, 3\]; \[1, 2\]"),
    "a.npz": ("no zip", "cannot be read as numpy arrays"),
    "a.txt2": ("", "is none of .parquet, .csv"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(world: World, tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_actions(tmp_path / name, world)


def test_damaged_numpy_files_never_crash(world: World, tmp_path: Path) -> None:
    original = files(tmp_path)[3].read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(original)
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        (tmp_path / "mutant.npz").write_bytes(bytes(data[: int(rng.integers(1, len(data) + 1))]))
        try:
            read_actions(tmp_path / "mutant.npz", world)
        except GWorldError as error:
            assert "mutant.npz" in str(error)
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read as numpy arrays"):
        read_actions(tmp_path / "pickled.npy", world)


def test_what_is_not_there_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_actions(tmp_path / "none.csv", world)
    files(tmp_path)
    with pytest.raises(UsageError, match="has 1 episodes; number 3"):
        read_actions(tmp_path / "store", world, number=3)
