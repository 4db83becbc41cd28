"""What actions drive, in training and in simulation alike: one reading of a world serves both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gworld.agents.binding import load_robot
from gworld.agents.kinematics import forward_kinematics
from gworld.dynamics.actuation import joint_values
from gworld.dynamics.drives import make_drive
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.errors import InputError
from gworld.scene.world import World, rest_state
from gworld.simulate.learned import Learned, drive_of
from gworld.simulate.stepper import agent_bodies
from tests.acting import acting_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return acting_world(tmp_path_factory.mktemp("world"))


def test_simulated_and_trained_drives_are_the_same(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    from gworld.bench.follow_data import open_stage

    stage = open_stage("push", 2, 1, tmp_path)
    own = Learned(stage.world, Dynamics(NetworkConfig()), 0.05).drives
    assert set(own) == set(stage.drives) == {"left", "right"}
    for name, drive in stage.drives.items():
        assert own[name].values == drive.values and own[name].links == drive.links
        assert own[name].components == drive.components and own[name].kinds == drive.kinds
        assert torch.allclose(own[name].base, drive.base, atol=1e-6)


def test_every_drive_puts_links_where_they_rest(world: World) -> None:
    rest = world.rest_poses()
    for name, body in agent_bodies(world).items():
        drive = drive_of(world, body)
        assert drive is not None
        memory = Learned(world, Dynamics(NetworkConfig()), 0.05).start(_motion(world)).memory[name]
        values = joint_values(memory)
        chain = forward_kinematics(drive.skeleton, values, drive.base)[..., list(drive.bodies), :, :]
        assert torch.allclose(chain[0], rest[list(drive.links)], atol=1e-5)


def test_a_joint_that_is_not_there_is_named(world: World) -> None:
    arm = next(entity for entity in world.agents if entity.name == "left")
    spec = replace(arm.action, names=("yaw/position", "knee/position"))
    lame = replace(world, entities=tuple(replace(e, action=spec) if e is arm else e for e in world.entities))
    with pytest.raises(InputError, match="knee"):
        make_drive(lame, lame.agents[world.agents.index(arm)], load_robot(world, "left"), torch.zeros(2))


def _motion(world: World):  # type: ignore[no-untyped-def]  # a plain state as one batch
    from gworld.dynamics.state import motion_from_states

    return motion_from_states([rest_state(world)])
