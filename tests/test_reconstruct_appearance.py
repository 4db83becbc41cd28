"""Corrections per picture: neutral at zero, bounded, exact in their gradients."""

from __future__ import annotations

import torch

from gworld.geometry import se3_exp
from gworld.reconstruct.appearance import (
    GRID,
    AppearanceOptions,
    distorted,
    exposed,
    fit_exposure,
    neutral,
    new_appearance,
    refined,
    twist_gradient,
)
from gworld.scene.cameras import Cameras, intrinsics, look_at


def a_picture(seed: int = 0) -> torch.Tensor:
    return torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(seed))


def test_zero_changes_nothing() -> None:
    image = a_picture()
    params = new_appearance(3, AppearanceOptions(True, poses=True, distortion_px=2.0), torch.device("cpu"))
    camera = Cameras(intrinsics(30, 20, 0.8)[None], look_at(torch.ones(1, 3), torch.zeros(1, 3)), 30, 20)
    assert torch.equal(exposed(image, params["exposure"][1]), image)
    assert torch.allclose(distorted(image, params["flow"][1], 2.0), image, atol=1e-5)
    assert torch.allclose(refined(camera, params["twist"][1], 2.0), camera.world_from_camera, atol=1e-6)
    assert not new_appearance(3, AppearanceOptions(exposure=False), torch.device("cpu"))


def test_the_distortion_never_exceeds_its_bound() -> None:
    height, width = 40, 60
    ramp = torch.stack(torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij"), dim=-1)
    image = torch.cat([ramp, torch.zeros(height, width, 1)], dim=-1)
    flow = 50 * torch.randn(2, *GRID, generator=torch.Generator().manual_seed(0))
    moved = distorted(image, flow, 1.5)[..., :2] - image[..., :2]
    assert 1.0 < float(moved.abs().max()) <= 1.5001


def test_exposure_is_recovered_and_its_mean_is_no_exposure() -> None:
    image = a_picture()
    truth = image * torch.tensor([1.3, 0.9, 0.7]) + torch.tensor([0.02, -0.01, 0.05])
    gain, offset = fit_exposure(image, truth, strength=0.0)
    assert torch.allclose(gain, torch.tensor([1.3, 0.9, 0.7]), atol=1e-5)
    assert torch.allclose(offset, torch.tensor([0.02, -0.01, 0.05]), atol=1e-5)
    held, _ = fit_exposure(image, truth, strength=1e3)
    assert torch.allclose(held, torch.ones(3), atol=1e-3)
    none = fit_exposure(image, truth, torch.zeros(20, 30, dtype=torch.bool))
    assert torch.equal(none[0], torch.ones(3)) and torch.equal(none[1], torch.zeros(3))
    assert torch.allclose(neutral(torch.randn(5, 6)).mean(0), torch.zeros(6), atol=1e-6)


def test_the_gradient_by_a_twist_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    pose = se3_exp(torch.randn(1, 6, generator=generator).double())
    weights = torch.randn(1, 4, 4, generator=generator).double()
    weights[:, 3] = 0
    width = 2.5

    def loss(twist: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor([width] * 3 + [1.0] * 3, dtype=torch.float64)
        return ((pose @ se3_exp(twist * scale)[None]).sin() * weights).sum()

    by_matrix = (pose.cos() * weights).double()
    found = twist_gradient(pose, by_matrix, width)
    for index in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[index] = 1e-5
        slope = (loss(step) - loss(-step)) / 2e-5
        assert abs(float(slope - found[index])) < 1e-6
