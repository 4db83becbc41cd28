"""Agents that push objects on a table: drives, what lies still, what is held up, unknown actions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import Recordings, cut_batch
from gworld.dynamics.rollout import predict_poses, roll_motion

pytest.importorskip("mujoco")

STEPS = 20


@pytest.fixture(scope="module")
def pushed(tmp_path_factory) -> tuple[Recordings, Dynamics]:
    from gworld.bench.follow_data import act, open_stage, stage_recordings

    folder: Path = tmp_path_factory.mktemp("push")
    stage = open_stage("push", 2, 3, folder)
    data = stage_recordings(stage, act(stage, "expert", [5, 6, 7], 3.0))
    model = Dynamics(NetworkConfig(support=True, residual=False, substeps=4))
    with torch.no_grad():
        model.actuation.gain.fill_(0.968)
        model.actuation.follow.fill_(0.98)
        model.support.brake.fill_(3.9)
        model.materials.bounce.fill_(0.0)
    return data, model


def test_links_follow_their_actions_and_pushed_objects_move(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 4], [1, 4], [2, 4]]), STEPS)
    with torch.no_grad():
        got = predict_poses(model, batch.scene, batch.start, batch.actions, STEPS, data.drives)[..., :3, 3]
    error = (got - batch.poses[..., :3]).norm(dim=-1)
    assert error[:, -1, [2, 4]].median() < 5e-3
    start = batch.start.world_from_link[..., :3, 3]
    copy = (batch.poses[:, -1, 5:, :3] - start[:, 5:]).norm(dim=-1)
    assert error[:, -1, 5:].mean() < copy.mean() or copy.max() < 0.01


def test_nothing_drifts_without_action(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 2]]), 1)
    null = {name: torch.zeros(1, 100, 2) for name in batch.actions}
    with torch.no_grad():
        first = next(roll_motion(model, batch.scene, batch.start, null, 1, data.drives)).world_from_link
        *_, last = roll_motion(model, batch.scene, batch.start, null, 100, data.drives)
    assert (last.world_from_link - first).abs().max() < 1e-4
    assert torch.isfinite(last.world_from_link).all()


def test_an_action_enters_at_its_step_and_through_its_own_agent(pushed: tuple[Recordings, Dynamics]) -> None:
    data, model = pushed
    batch = cut_batch(data, torch.tensor([[0, 4]]), 8)
    other = {name: value.clone() for name, value in batch.actions.items()}
    other["left"][:, 5:] = torch.nan  # unknown from step 5 on
    with torch.no_grad():
        one = predict_poses(model, batch.scene, batch.start, batch.actions, 8, data.drives)
        two = predict_poses(model, batch.scene, batch.start, other, 8, data.drives)
    assert torch.equal(one[:, :5], two[:, :5])
    assert torch.isfinite(two).all()
    assert torch.allclose(one[:, 5:, 4], two[:, 5:, 4], atol=1e-6)  # the right agent does as before
