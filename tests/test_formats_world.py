"""World folders: everything comes back, a standard viewer opens the PLY, and damage is one sentence."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gworld.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from gworld.data.toys import tabletop_world
from gworld.errors import InputError, UsageError
from gworld.formats.ply import read_ply
from gworld.formats.world import bind_dynamics, bind_refiner, load_world, save_world
from gworld.scene.world import ActionSpec, Entity, World, rest_state


@pytest.fixture(scope="module")
def world() -> World:
    return tabletop_world(spacing=0.05)


def test_round_trip(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "w")
    back = load_world(tmp_path / "w")
    assert back.links == world.links and back.entities == world.entities
    assert back.metric and back.gravity == world.gravity
    for name in ("means", "quats_wxyz", "log_scales", "opacity_logits", "sh", "links"):
        assert torch.equal(getattr(back.gaussians, name), getattr(world.gaussians, name))
    assert back.cameras is not None and world.cameras is not None
    torch.testing.assert_close(back.cameras.world_from_camera, world.cameras.world_from_camera)
    assert [entity.name for entity in back.agents] == ["left", "right"]
    table = read_ply(tmp_path / "w" / "gaussians.ply")
    assert table.axes == "RFU" and table.metric and table.link_table[1].name == "left/base"


def test_robot_models_travel_with_the_world(world: World, tmp_path: Path) -> None:
    agent = replace(world.entities[1], source="left/arm.urdf")
    modelled = replace(world, entities=(world.entities[0], agent, *world.entities[2:]), folder=tmp_path / "src")
    (tmp_path / "src" / "agents" / "left").mkdir(parents=True)
    (tmp_path / "src" / "agents" / "left" / "arm.urdf").write_text("<robot/>")
    save_world(modelled, tmp_path / "w")
    assert load_world(tmp_path / "w").entities[1].source == "left/arm.urdf"
    with pytest.raises(UsageError, match="exists already"):
        save_world(modelled, tmp_path / "w")
    save_world(world, tmp_path / "w", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"holds `thesis\.tex`, which gworld did not write"):
        save_world(world, tmp_path / "other", overwrite=True)
    assert (tmp_path / "other" / "thesis.tex").exists()


DAMAGES = [
    "format", "pose", "nan", "parent", "owner", "twice", "kind", "limits", "names", "escape", "links", "gravity",
    "metric", "cameras", "model", "list",
]  # fmt: skip


def damage(data: dict[str, Any], name: str) -> None:
    edits = {
        "format": lambda: data.update(format="gworld world 99"),
        "pose": lambda: data["links"][1].update(pose=[1, 2, 3]),
        "nan": lambda: data["links"][1].update(pose=["nan"] * 7),
        "parent": lambda: data["links"][1].update(parent=5),
        "owner": lambda: data["entities"][1].update(links=[99]),
        "twice": lambda: data["entities"][1].update(links=[0]),
        "kind": lambda: data["entities"][1].update(kind="ghost"),
        "limits": lambda: data["entities"][1]["action"].update(low=[9, 9, 9]),
        "names": lambda: data["entities"][1]["action"].update(names=["a"]),
        "escape": lambda: data["entities"][1].update(source="../../etc/passwd"),
        "links": lambda: data.update(links=data["links"][:2]),
        "gravity": lambda: data.update(gravity=[1, 2]),
        "metric": lambda: data.update(metric="yes"),
        "cameras": lambda: data["cameras"].update(K=[[1, 2], [3]]),
        "model": lambda: data["cameras"].update(model="magic"),
        "list": lambda: data.update(entities=3),
    }
    edits[name]()


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_worlds_are_one_sentence(world: World, tmp_path: Path, name: str) -> None:
    save_world(world, tmp_path / "w")
    file = tmp_path / "w" / "world.json"
    data = json.loads(file.read_text())
    damage(data, name)
    file.write_text(json.dumps(data))
    with pytest.raises(InputError) as caught:
        load_world(tmp_path / "w")
    assert "\n" not in str(caught.value)


def test_nouns_check_themselves(world: World) -> None:
    state = rest_state(world)
    assert state.world_from_link.shape == (len(world.links), 4, 4) and state.history.shape == (0, len(world.links), 7)
    with pytest.raises(InputError, match="two links are called"):
        replace(world, links=(*world.links[:-1], world.links[0]))
    with pytest.raises(InputError, match="belongs to both"):
        replace(world, entities=(*world.entities, Entity("thief", "object", (3,))))
    with pytest.raises(InputError, match="lower one must come first"):
        ActionSpec(("a",), ("rad",), (1.0,), (0.0,))
    with pytest.raises(InputError, match="the world has 2"):
        replace(world, links=world.links[:2], entities=())


def test_background_is_saved_and_checked(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "none")
    assert load_world(tmp_path / "none").background is None
    save_world(replace(world, background=(0.2, 0.4, 0.6)), tmp_path / "w")
    assert load_world(tmp_path / "w").background == (0.2, 0.4, 0.6)
    data = json.loads((tmp_path / "w" / "world.json").read_text())
    for colour in ([0.1, 0.2], [2, 0, 0], "red", [None] * 3):
        (tmp_path / "w" / "world.json").write_text(json.dumps(data | {"background": colour}))
        with pytest.raises(InputError, match=r"world\.json"):
            load_world(tmp_path / "w")
    del data["background"]  # what older versions wrote
    (tmp_path / "w" / "world.json").write_text(json.dumps(data))
    assert load_world(tmp_path / "w").background is None


def checkpoint(run: Path, value: float) -> Path:
    return save_checkpoint(run, Checkpoint(7, {"weight": torch.full((3,), value)}, {"kind": "test"}))


def test_bound_checkpoints_travel_with_the_world(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "w")
    checkpoint(tmp_path / "one", 1.0)
    newest = checkpoint(tmp_path / "two", 2.0)
    bound = bind_dynamics(tmp_path / "w", tmp_path / "one")
    assert bound.dynamics == tmp_path / "w" / "dynamics" and bound.refiner is None
    bind_refiner(tmp_path / "w", newest)
    with pytest.raises(UsageError, match="bound to a dynamics checkpoint already"):
        bind_dynamics(tmp_path / "w", tmp_path / "two")
    copy = bind_dynamics(tmp_path / "w", tmp_path / "two", tmp_path / "copy")
    assert copy.dynamics is not None and copy.refiner is not None
    assert float(load_checkpoint(copy.dynamics).tensors["weight"][0]) == 2.0
    here = load_world(tmp_path / "w")
    assert here.dynamics is not None and float(load_checkpoint(here.dynamics).tensors["weight"][0]) == 1.0
    save_world(replace(here, background=(0.0, 0.0, 0.0)), tmp_path / "w", overwrite=True)
    again = load_world(tmp_path / "w")
    assert again.dynamics is not None and again.refiner is not None
    bind_dynamics(tmp_path / "w", tmp_path / "two", overwrite=True)
    with pytest.raises(InputError, match="holds no checkpoint"):
        bind_dynamics(tmp_path / "w", tmp_path / "nothing", overwrite=True)


def test_bound_checkpoints_are_held_to_their_hash(world: World, tmp_path: Path) -> None:
    save_world(world, tmp_path / "w")
    checkpoint(tmp_path / "one", 1.0)
    other = checkpoint(tmp_path / "two", 2.0)
    bound = bind_dynamics(tmp_path / "w", tmp_path / "one")
    place = tmp_path / "w" / "dynamics"
    (place / "tensors.safetensors").write_bytes((other / "tensors.safetensors").read_bytes())
    with pytest.raises(InputError, match="does not have the hash"):  # nor is a broken one carried on
        save_world(bound, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    shutil.copytree(other, place, dirs_exist_ok=True)
    with pytest.raises(InputError, match="not the checkpoint that its world is bound to"):
        load_world(tmp_path / "w")
    shutil.rmtree(place)
    with pytest.raises(InputError, match="does not exist"):
        load_world(tmp_path / "w")
    save_world(world, tmp_path / "v")
    shutil.copytree(other, tmp_path / "v" / "dynamics")
    with pytest.raises(InputError, match=r"is not named in its world\.json"):
        load_world(tmp_path / "v")
