"""What the render bench prepares and counts: a scene cut finer, pairs of pixel and Gaussian."""

from __future__ import annotations

import torch

from gworld.bench.render_cost import contributing_pairs
from gworld.bench.render_trained import cut_in_three
from gworld.bench.splats import Scene
from gworld.geometry import matrix_from_quat
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians


def _one(log_scales: list[float], logit: float) -> Scene:
    gaussians = Gaussians(
        means=torch.tensor([[0.1, -0.2, 4.0]]),
        quats_wxyz=torch.tensor([[0.8, 0.2, -0.4, 0.4]]),
        log_scales=torch.tensor([log_scales]),
        opacity_logits=torch.tensor([logit]),
        sh=torch.ones(1, 1, 3),
        links=torch.zeros(1, dtype=torch.int32),
    )
    K = torch.tensor([[[200.0, 0, 120], [0, 200, 120], [0, 0, 1]]])
    return Scene("one", gaussians, torch.eye(4)[None, None], Cameras(K, torch.eye(4)[None], 240, 240))


def test_three_parts_spread_as_the_whole() -> None:
    whole = _one([-2.0, -0.5, -3.0], 0.0).gaussians
    parts = cut_in_three(whole)
    turn = matrix_from_quat(whole.quats_wxyz[0])
    within = turn @ torch.diag((2 * parts.log_scales[0]).exp()) @ turn.T
    between = (parts.means - whole.means).T @ (parts.means - whole.means) / 3
    expected = turn @ torch.diag((2 * whole.log_scales[0]).exp()) @ turn.T
    assert len(parts) == 3
    torch.testing.assert_close(within + between, expected)
    torch.testing.assert_close(parts.means.mean(0), whole.means[0])


def test_pairs_are_counted_where_alpha_shows() -> None:
    scene = _one([-1.0, -1.2, -1.1], 1.0)
    alpha = render(scene.gaussians, scene.poses, scene.cameras, outputs=("alpha",), backend="reference").alpha
    assert alpha is not None
    # Every third column of every 40th row stands for all: a coarse count of a blob of thousands of pixels.
    counted, drawn = contributing_pairs(scene), int((alpha > 0).sum())
    assert drawn > 4000 and 0.7 < counted / drawn < 1.3
