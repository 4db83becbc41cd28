"""How far predictions are from recordings, in the radius of a typical object."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.dynamics.actuation import actuation_of
from gworld.dynamics.network import Model
from gworld.dynamics.recordings import Batch, Recordings, cut_batch, window_table
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.tokens import shape_values
from gworld.geometry import transform_from_pose


@torch.no_grad()
def validate(model: Model, data: Recordings, horizon: int = 12, windows: int = 128) -> float:
    """Mean error of rollouts, in radii, over windows spread evenly over the recordings."""
    table, share = window_table(data, min(horizon, data.poses.shape[1] - 4))
    generator = torch.Generator().manual_seed(0)
    rows = table[torch.multinomial(share, min(windows, len(table)), generator=generator)]
    batch = cut_batch(data, rows, min(horizon, data.poses.shape[1] - 4), model.belief, actuation_of(model))
    return float(pose_errors(model, batch, data).mean())


def pose_errors(model: Model, batch: Batch, data: Recordings) -> Float[Tensor, "B H L"]:
    """Distance of every link from the truth in radii, turning counted at its rim; 0 for link 0 and absent links."""
    steps = batch.poses.shape[1]
    got = predict_poses(model, batch.scene, batch.start, batch.actions, steps, data.drives)
    truth = transform_from_pose(batch.poses)
    off = (got[..., :3, 3] - truth[..., :3, 3]).square().sum(-1)
    # |R - R'|^2 / 2 is the mean square way of points on a unit sphere, times 3/2: no angle, hence smooth everywhere.
    turned = (got[..., :3, :3] - truth[..., :3, :3]).square().sum((-1, -2)) / 3.0
    rim = shape_values(batch.scene, "bound")[:, None]
    round_ones = (shape_values(batch.scene, "radius") > 0)[:, None]
    square = off + torch.where(round_ones, torch.zeros_like(turned), turned * rim**2)
    error = (square + 1e-16).sqrt() / batch.scene.scale[:, None, None]
    return error * batch.scene.present[:, None]
