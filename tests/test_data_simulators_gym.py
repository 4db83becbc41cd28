"""Other people's simulators: two arms apart, the same seed the same episode, what cannot be opened in one sentence."""

from __future__ import annotations

import os

import numpy as np
import pytest

pytest.importorskip("mujoco", reason="MuJoCo is not installed; pip install 'gworld[sim]'")
os.environ.setdefault("MUJOCO_GL", "egl")  # dm_control reads it once, when it is first imported

from gworld.data.simulated import simulate_episode, trace_episode
from gworld.data.simulators_gym import open_simulation
from gworld.data.simulators_options import SceneOptions
from gworld.errors import GWorldError, InputError, MissingBackendError, UsageError

SMALL = SceneOptions(width=80, height=60, cameras=7)


def test_gym_aloha_is_two_agents_with_calibrated_cameras() -> None:
    pytest.importorskip("gym_aloha", reason="gym-aloha is not installed; pip install 'gworld[sim]'")
    simulation = open_simulation("gym:gym_aloha/AlohaTransferCube-v0", SMALL)
    assert list(simulation.agents) == ["left", "right"] and simulation.objects == ("box",)
    left = simulation.agents["left"]
    assert left.spec.names[0] == "waist/position" and left.spec.names[-1] == "gripper/opening" and len(left.spec) == 7
    assert simulation.cameras is not None and {"top", "angle"} <= set(simulation.cameras.names)
    assert not set(left.links) & set(simulation.agents["right"].links)
    trace, behaviours = simulate_episode(simulation, {"left": "random", "right": "null"}, 3, 1.0)
    again, _ = simulate_episode(simulation, {"left": "random", "right": "null"}, 3, 1.0)
    np.testing.assert_array_equal(trace.link_poses, again.link_poses)
    travel = np.abs(np.diff(trace.joints["left"], axis=0)).sum(), np.abs(np.diff(trace.joints["right"], axis=0)).sum()
    assert travel[0] > 10 * travel[1]
    episode = trace_episode(simulation, trace, behaviours)
    assert abs(float(episode.times[1]) - 0.02) < 1e-9 and episode.behaviours == {"left": "random", "right": "null"}
    simulation.close()


@pytest.mark.parametrize("name", ["gym:FetchPush-v4", "gym:Ant-v5", "gym:PointMaze_UMaze-v3", "dm:cheetah/run"])
def test_environments_step_and_repeat(name: str) -> None:
    package = {"gym": "gymnasium_robotics", "dm:": "dm_control"}[name[:3]]
    pytest.importorskip(package, reason=f"{package} is not installed")
    simulation = open_simulation(name, SMALL)
    (agent,) = simulation.agents
    trace, _ = simulate_episode(simulation, {agent: "random"}, 4, 0.5)
    again, _ = simulate_episode(simulation, {agent: "random"}, 4, 0.5)
    np.testing.assert_array_equal(trace.qpos, again.qpos)
    assert np.abs(trace.qpos - trace.qpos[0]).max() > 1e-3
    assert simulation.cameras is not None and len(simulation.cameras) == 7
    owned = [link for entity in simulation.entities for link in entity.links]
    assert sorted(owned) == list(range(len(simulation.link_names)))


def test_what_cannot_be_opened_is_one_sentence() -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is not installed; pip install 'gworld[sim]'")
    cases: dict[str, type[GWorldError]] = {
        "gym:": UsageError,
        "gym:NoSuch-v0": UsageError,
        "gym:CartPole-v1": InputError,
    }
    for name, kind in cases.items():
        with pytest.raises(kind) as caught:
            open_simulation(name)
        assert "\n" not in str(caught.value)
    try:
        import robosuite  # noqa: F401
    except ImportError:
        with pytest.raises(MissingBackendError, match="pip install robosuite"):
            open_simulation("robosuite:TwoArmLift")
