"""The reference's gradients: finite differences of every attribute and pose; bad values spread nowhere."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gworld.errors import InputError
from gworld.geometry import se3_exp
from gworld.render.api import RenderOptions
from gworld.render.projection import sound_rows
from gworld.render.reference import render_reference
from gworld.render.select import render
from gworld.scene.gaussians import gaussians_to, select_gaussians
from tests.scenes import NAMES, front_camera, one_gaussian, random_cameras, random_gaussians, random_poses

DIFFERENTIABLE = ("rgb", "alpha", "depth", "flow")
BAD = [math.nan, math.inf, -math.inf, 89.0, 0.0, -0.0]
BAD += [sign * size for size in (3.4028e38, 1e38, 1e30, 1e20, 1e15, 1e11, 1.2e-38, 1e-45) for sign in (1, -1)]
SLOTS = [("means", k) for k in range(3)] + [("quats_wxyz", k) for k in range(4)]
SLOTS += [("log_scales", k) for k in range(3)] + [("opacity_logits", 0)] + [("sh", k) for k in range(3)]


def weighted(out, seed: int = 0) -> torch.Tensor:
    """One number from all pictures, with random weights so that no gradient cancels."""
    total = torch.zeros((), dtype=torch.float64)
    for name in DIFFERENTIABLE:
        picture = getattr(out, name)
        if picture is not None:
            rng = torch.Generator().manual_seed(seed)
            total = total + (picture.double() * torch.rand(picture.shape, generator=rng, dtype=torch.float64)).sum()
    return total


def small_scene(antialiased: bool):
    gaussians = gaussians_to(random_gaussians(21, 7, degree=3, links=3, size=0.25), dtype=torch.float64)
    cameras = random_cameras(21, 2, 12, 10)
    cameras = replace(cameras, K=cameras.K.double(), world_from_camera=cameras.world_from_camera.double())
    poses, before = random_poses(21, 2, 3).double(), random_poses(22, 2, 3).double()
    options = RenderOptions(background=(0.3, 0.1, 0.7), antialiased=antialiased)
    return gaussians, poses, cameras, before, options


@pytest.mark.parametrize("antialiased", [False, True])
def test_finite_differences_of_every_attribute(antialiased: bool):
    gaussians, poses, cameras, before, options = small_scene(antialiased)

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        given = replace(gaussians, **values)
        return weighted(render_reference(given, poses, cameras, DIFFERENTIABLE, (before, cameras), options))

    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in NAMES}
    loss(leaves).backward()
    rng = torch.Generator().manual_seed(1)
    for name in NAMES:
        entries = torch.randperm(leaves[name].numel(), generator=rng)[:10]
        for entry in entries.tolist():
            step = torch.zeros(leaves[name].numel(), dtype=torch.float64)
            step[entry] = 1e-6
            moved = [leaves[name].detach() + sign * step.view_as(leaves[name]) for sign in (1, -1)]
            with torch.no_grad():
                high, low = (loss({**leaves, name: value}) for value in moved)
            found = float(leaves[name].grad.flatten()[entry])
            assert found == pytest.approx(float(high - low) / 2e-6, rel=1e-4, abs=1e-5), f"{name}[{entry}]"
    assert all(bool((leaves[name].grad != 0).any()) for name in NAMES)


def test_finite_differences_of_link_and_camera_poses():
    gaussians, poses, cameras, before, options = small_scene(False)
    twists = {"links": torch.zeros(2, 3, 6), "cameras": torch.zeros(2, 6), "before": torch.zeros(2, 3, 6)}
    twists = {name: value.double().requires_grad_() for name, value in twists.items()}

    def loss(given: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = replace(cameras, world_from_camera=cameras.world_from_camera @ se3_exp(given["cameras"]))
        previous = (se3_exp(given["before"]) @ before, cameras)
        links = se3_exp(given["links"]) @ poses
        return weighted(render_reference(gaussians, links, moved, DIFFERENTIABLE, previous, options))

    loss(twists).backward()
    for name, leaf in twists.items():
        for entry in range(0, leaf.numel(), 5 if leaf.numel() > 12 else 1):
            step = torch.zeros(leaf.numel(), dtype=torch.float64)
            step[entry] = 1e-6
            with torch.no_grad():
                high, low = (loss({**twists, name: sign * step.view_as(leaf)}) for sign in (1, -1))
            found = float(leaf.grad.flatten()[entry])
            assert found == pytest.approx(float(high - low) / 2e-6, rel=1e-4, abs=1e-5), f"{name}[{entry}]"


def test_no_gradient_through_the_cap_of_alpha():
    gaussian = one_gaussian(sigma=5.0, logit=20.0)
    logits = gaussian.opacity_logits.clone().requires_grad_()
    render_reference(
        replace(gaussian, opacity_logits=logits), torch.eye(4)[None, None], front_camera(3, 3)
    ).alpha.sum().backward()
    assert float(logits.grad.abs().max()) == 0.0


def picture_and_gradients(gaussians):
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in NAMES}
    poses = torch.eye(4)[None, None].requires_grad_()
    camera = front_camera(16, 16, 16.0)
    camera = replace(camera, world_from_camera=camera.world_from_camera.requires_grad_())
    out = render_reference(replace(gaussians, **leaves), poses, camera, DIFFERENTIABLE, (poses, camera))
    weighted(out).backward()
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    return out, gradients, (poses.grad, camera.world_from_camera.grad)


@pytest.mark.parametrize(("name", "column"), SLOTS, ids=[f"{name}{column}" for name, column in SLOTS])
def test_bad_values_never_spread(name: str, column: int):
    scene = random_gaussians(31, 8, size=0.2)
    scene = replace(scene, means=scene.means + torch.tensor([0.0, 0.0, 2.5]))
    row, others = 3, torch.tensor([0, 1, 2, 4, 5, 6, 7])
    clean_out, clean_gradients, clean_poses = picture_and_gradients(select_gaussians(scene, others))
    culled = 0
    for value in BAD:
        column_values = getattr(scene, name).clone()
        column_values.view(len(scene), -1)[row, column] = value
        poisoned = replace(scene, **{name: column_values})
        out, gradients, pose_gradients = picture_and_gradients(poisoned)
        for picture in (getattr(out, key) for key in DIFFERENTIABLE):
            assert picture.isfinite().all(), value
        assert all(gradient.isfinite().all() for gradient in (*gradients.values(), *pose_gradients)), value
        if bool(sound_rows(poisoned)[row]):
            continue
        culled += 1
        torch.testing.assert_close(out.rgb, clean_out.rgb, atol=1e-6, rtol=0)
        for key, gradient in gradients.items():
            assert float(gradient[row].abs().max()) == 0.0, (value, key)
            torch.testing.assert_close(gradient[others], clean_gradients[key], atol=1e-5, rtol=1e-5)
        for found, expected in zip(pose_gradients, clean_poses, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert len(BAD) == 22 and culled >= 13


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_visible_gives_zero_gradients(count: int):
    hidden = replace(random_gaussians(2, count, degree=1), means=torch.full((count, 3), -5.0))
    leaves = {name: getattr(hidden, name).clone().requires_grad_() for name in NAMES}
    out = render_reference(replace(hidden, **leaves), torch.eye(4)[None, None], front_camera())
    assert float(out.alpha.detach().abs().max()) == 0.0
    out.rgb.sum().backward()
    assert all(float(leaf.grad.abs().sum()) == 0.0 for leaf in leaves.values())


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        ((0, 0), 0.0),
        ((0, 0), math.nan),
        ((1, 1), math.inf),
        ((1, 1), -50.0),
        ((0, 2), math.nan),
        ((0, 1), 0.2),
        ((2, 2), 0.0),
    ],
)
def test_degenerate_intrinsics_are_refused(slot: tuple[int, int], value: float):
    camera = front_camera()
    K = camera.K.clone()
    K[0, slot[0], slot[1]] = value
    with pytest.raises(InputError, match="camera 0 of cameras has K"):
        render(one_gaussian(), None, replace(camera, K=K), backend="reference")


@pytest.mark.parametrize("value", [math.nan, math.inf, 3.0])
def test_degenerate_poses_are_refused(value: float):
    camera = front_camera()
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 0] = value
    with pytest.raises(InputError, match="a camera pose of cameras is not finite or not rigid"):
        render(one_gaussian(), None, replace(camera, world_from_camera=pose), backend="reference")
    with pytest.raises(InputError, match="a link pose of world_from_link is not finite or not rigid"):
        render(one_gaussian(), pose, camera, backend="reference")
