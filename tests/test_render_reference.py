"""The reference renderer against closed forms: one Gaussian, order, background, limits, antialiasing, links."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gworld.geometry import matrix_from_quat, se3_exp
from gworld.render.api import DILATION, MAX_ALPHA, MIN_ALPHA, RenderOptions
from gworld.render.reference import render_reference
from gworld.scene.gaussians import gaussians_to, join_gaussians
from gworld.scene.harmonics import rgb_from_sh, sh_from_rgb
from tests.scenes import (
    agreement_scenes,
    doubtful_pixels,
    front_camera,
    one_gaussian,
    random_cameras,
    random_gaussians,
    random_poses,
    scene_to,
)

ALL = ("rgb", "alpha", "depth", "link_id", "flow")
HERE = torch.eye(4)[None, None]


def coloured(rgb: tuple[float, float, float], mean=(0.0, 0.0, 2.0), sigma: float = 0.1, logit: float = 2.0):
    return replace(one_gaussian(mean, sigma, logit), sh=sh_from_rgb(torch.tensor([[rgb]])))


def test_one_gaussian_is_its_closed_form():
    gaussian = gaussians_to(one_gaussian(sigma=0.2), dtype=torch.float64)
    camera = front_camera(dtype=torch.float64)
    out = render_reference(gaussian, HERE.double(), camera, ALL, (HERE.double(), camera), RenderOptions())
    y, x = torch.meshgrid(torch.arange(32) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    variance = (32.0 * float(gaussian.log_scales[0, 0].exp()) / 2.0) ** 2 + DILATION
    distance_sq = ((x - 16) ** 2 + (y - 16) ** 2).double()
    alpha = torch.sigmoid(gaussian.opacity_logits[0]) * torch.exp(-0.5 * distance_sq / variance)
    alpha = torch.where(alpha >= MIN_ALPHA, alpha, 0.0)
    colour = rgb_from_sh(gaussian.sh[0, 0]).clamp_min(0)
    torch.testing.assert_close(out.alpha[0, 0], alpha, atol=1e-12, rtol=0)
    torch.testing.assert_close(out.rgb[0, 0], alpha[..., None] * colour, atol=1e-12, rtol=0)
    torch.testing.assert_close(out.depth[0, 0], torch.where(alpha > 0, 2.0, 0.0).double(), atol=1e-12, rtol=0)
    assert torch.equal(out.link_id[0, 0] == 0, alpha > 0) and int(out.link_id.min()) == -1


def test_turned_gaussian_off_the_axis_follows_the_jacobian_of_the_projection():
    """The covariance equals that of a linearised projection, found by autograd on the pixel position."""
    gaussian = gaussians_to(random_gaussians(3, 1), dtype=torch.float64)
    gaussian = replace(
        gaussian, means=torch.tensor([[0.3, -0.2, 1.7]]).double(), opacity_logits=torch.tensor([9.0]).double()
    )
    camera = front_camera(48, 48, dtype=torch.float64)
    K = camera.K[0]

    def pixel(point):
        return (K @ point)[:2] / point[2]

    J = torch.autograd.functional.jacobian(pixel, gaussian.means[0])
    R = matrix_from_quat(torch.nn.functional.normalize(gaussian.quats_wxyz, dim=-1))[0]
    covariance = (
        J @ R @ torch.diag(torch.exp(2 * gaussian.log_scales[0])) @ R.T @ J.T + DILATION * torch.eye(2).double()
    )
    y, x = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    d = torch.stack([x, y], -1).double() - pixel(gaussian.means[0])
    power = torch.einsum("hwi,ij,hwj->hw", d, torch.linalg.inv(covariance), d)
    alpha = (torch.sigmoid(gaussian.opacity_logits[0]) * torch.exp(-0.5 * power)).clamp_max(MAX_ALPHA)
    out = render_reference(gaussian, HERE.double(), camera, ("alpha",))
    torch.testing.assert_close(out.alpha[0, 0], torch.where(alpha >= MIN_ALPHA, alpha, 0.0), atol=1e-10, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_nearer_gaussians_cover_whatever_their_row(flip: bool):
    near, far = coloured((1, 0, 0), (0, 0, 2.0), logit=8.0), coloured((0, 1, 0), (0, 0, 3.0), logit=8.0)
    out = render_reference(join_gaussians([far, near] if flip else [near, far]), HERE, front_camera(33, 33))
    red, green, _ = out.rgb[0, 0, 16, 16].tolist()
    assert red > 0.99 and green < 0.01


def test_equal_depths_blend_in_index_order():
    first, second = coloured((1, 0, 0), logit=8.0), coloured((0, 1, 0), logit=8.0)
    out = render_reference(join_gaussians([first, second]), HERE, front_camera(33, 33))
    assert out.rgb[0, 0, 16, 16, 0] > 0.99 > out.rgb[0, 0, 16, 16, 1] + 0.98


def test_background_fills_what_the_gaussians_leave():
    scene = agreement_scenes()[0]
    dark = render_reference(scene.gaussians, scene.world_from_link, scene.cameras)
    options = RenderOptions(background=(0.2, 0.4, 0.8))
    light = render_reference(scene.gaussians, scene.world_from_link, scene.cameras, ("rgb", "alpha"), None, options)
    expected = dark.rgb + (1 - dark.alpha)[..., None] * torch.tensor([0.2, 0.4, 0.8])
    torch.testing.assert_close(light.rgb, expected, atol=1e-6, rtol=0)
    assert light.depth is None and light.link_id is None and light.flow is None


def test_equal_colours_give_alpha_times_colour():
    """Energy: with one colour everywhere the weights must add up to alpha."""
    many = random_gaussians(5, 300)
    many = replace(many, sh=sh_from_rgb(torch.tensor([0.3, 0.6, 0.9])).expand(300, 1, 3))
    out = render_reference(many, HERE, random_cameras(5, 1))
    torch.testing.assert_close(out.rgb, out.alpha[..., None] * torch.tensor([0.3, 0.6, 0.9]), atol=1e-5, rtol=0)
    assert float(out.alpha.max()) <= 1.0


def test_blending_stops_before_the_transmittance_limit():
    """Layers of alpha 0.9 leave 1e-1 .. 1e-4: the one that would reach 1e-4 is not drawn."""
    logit = math.log(0.9 / 0.1)
    layers = [coloured((1, 1, 1), (0, 0, 2.0 + 0.1 * k), sigma=50.0, logit=logit) for k in range(6)]
    scene = gaussians_to(join_gaussians(layers), dtype=torch.float64)
    out = render_reference(scene, HERE.double(), front_camera(3, 3, dtype=torch.float64), ("alpha",))
    remaining = 1 - float(out.alpha[0, 0, 1, 1])
    assert remaining == pytest.approx(1e-3, rel=1e-2)


def test_alpha_is_capped_and_small_alpha_skipped():
    opaque = coloured((1, 1, 1), sigma=1.0, logit=20.0)
    assert float(render_reference(opaque, HERE, front_camera(3, 3)).alpha.max()) == pytest.approx(MAX_ALPHA)
    faint = coloured((1, 1, 1), sigma=1.0, logit=math.log(1 / 260))
    assert float(render_reference(faint, HERE, front_camera(3, 3)).alpha.max()) == 0.0


@pytest.mark.parametrize("sigma", [1e-4, 0.005, 0.3])
def test_antialiased_gaussians_keep_their_energy(sigma: float):
    """Sum of alpha over the image = opacity * 2 pi sqrt(det before dilation), however small the Gaussian."""
    gaussian = gaussians_to(coloured((1, 1, 1), (0, 0, 2.0), sigma=sigma, logit=0.0), dtype=torch.float64)
    camera = front_camera(65, 65, 32.0, torch.float64)
    options = RenderOptions(antialiased=True)
    out = render_reference(gaussian, HERE.double(), camera, ("alpha",), None, options)
    before = (32.0 * sigma / 2.0) ** 2
    peak = 0.5 * before / (before + DILATION)
    if peak < MIN_ALPHA:
        assert float(out.alpha.max()) == 0.0
    else:
        assert float(out.alpha.max()) == pytest.approx(peak, rel=1e-6)
    if sigma == 0.3:
        assert float(out.alpha.sum()) == pytest.approx(0.5 * 2 * math.pi * before, rel=0.02)


def test_highlights_turn_with_their_link():
    """Turning link and camera together changes nothing (SH degree 3), also when the means lie far from the link."""
    gaussians = gaussians_to(random_gaussians(7, 200, degree=3, links=3), dtype=torch.float64)
    cameras = random_cameras(7, 2)
    cameras = replace(cameras, K=cameras.K.double(), world_from_camera=cameras.world_from_camera.double())
    poses = random_poses(7, 1, 3).double()
    turn = se3_exp(torch.tensor([0.4, -2.0, 1.0, 0.9, -1.1, 0.5]).double())
    moved = replace(cameras, world_from_camera=turn @ cameras.world_from_camera)
    plain = render_reference(gaussians, poses, cameras, ALL, (poses, cameras))
    turned = render_reference(gaussians, turn @ poses, moved, ALL, (turn @ poses, moved))
    for name in ("rgb", "alpha", "depth", "flow"):
        torch.testing.assert_close(getattr(plain, name), getattr(turned, name), atol=1e-9, rtol=0)
    assert torch.equal(plain.link_id, turned.link_id)
    single = render_reference(
        gaussians_to(gaussians, dtype=torch.float32), (turn @ poses).float(), moved, ("rgb",)
    )  # in float32 too, but for alphas that rounding carries over the threshold
    difference = (single.rgb - plain.rgb.float()).abs().amax(-1)
    assert float(difference.max()) <= 1 / 255 and float(difference.flatten().quantile(0.99)) < 1e-5
    still = render_reference(gaussians, turn @ poses, cameras)
    assert float((still.rgb - plain.rgb).abs().max()) > 0.05


def test_flow_is_the_motion_of_the_pixels():
    """A link moving sideways by d moves its pixels by focal * d / z; the rest stands still."""
    body = join_gaussians([coloured((1, 0, 0), (0.0, 0, 2.0)), coloured((0, 1, 0), (-0.7, 0, 2.0))])
    body = replace(body, links=torch.tensor([1, 0], dtype=torch.int32))
    now = torch.eye(4).repeat(1, 2, 1, 1)
    before = now.clone()
    before[0, 1, 0, 3] = -0.1
    out = render_reference(body, now, front_camera(33, 33), ("flow", "link_id"), (before, front_camera(33, 33)))
    assert out.flow[0, 0, 16, 16].tolist() == pytest.approx([32 * 0.1 / 2, 0.0], abs=1e-5)
    assert int(out.link_id[0, 0, 16, 16]) == 1
    assert out.flow[0, 0, 16, 4].tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    behind = before.clone()
    behind[0, 1, 2, 3] = -5.0
    out = render_reference(body, now, front_camera(33, 33), ("flow",), (behind, front_camera(33, 33)))
    assert float(out.flow.abs().max()) == 0.0


def test_link_id_is_the_largest_weight_and_the_nearer_when_equal():
    weak = replace(coloured((1, 0, 0), (0, 0, 1.5), sigma=3.0, logit=-1.0), links=torch.tensor([1], dtype=torch.int32))
    strong = replace(coloured((0, 1, 0), (0, 0, 2.0), sigma=3.0), links=torch.tensor([2], dtype=torch.int32))
    poses = torch.eye(4).repeat(1, 3, 1, 1)
    assert (render_reference(join_gaussians([weak, strong]), poses, front_camera(), ("link_id",)).link_id == 2).all()
    far = replace(weak, means=torch.tensor([[0, 0, 3.0]]))
    assert (render_reference(join_gaussians([far, strong]), poses, front_camera(), ("link_id",)).link_id == 2).all()


def test_soft_bodies_follow_the_weighted_sum_of_their_links():
    body = random_gaussians(9, 50, degree=1, links=2)
    links = torch.stack([body.links, 1 - body.links, body.links, body.links], dim=1)
    weights = torch.zeros(50, 4)
    weights[:, 0] = 1.0
    poses, cameras = random_poses(9, 1, 2), random_cameras(9, 1)
    rigid = render_reference(body, poses, cameras)
    same = render_reference(replace(body, soft_links=links, soft_weights=weights), poses, cameras)
    torch.testing.assert_close(same.rgb, rigid.rgb, atol=1e-6, rtol=0)
    half = replace(body, soft_links=links, soft_weights=torch.tensor([0.25, 0.5, 0.25, 0.0]).expand(50, 4))
    shifted = torch.eye(4).repeat(1, 2, 1, 1)
    shifted[0, 1, 0, 3] = 0.4
    middle = torch.eye(4).repeat(1, 2, 1, 1)
    middle[0, :, 0, 3] = 0.2
    expected = render_reference(body, middle, cameras)
    torch.testing.assert_close(render_reference(half, shifted, cameras).rgb, expected.rgb, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scene", agreement_scenes()[::2], ids=lambda scene: scene.name)
def test_float32_agrees_with_float64_on_the_agreement_set(scene):
    """The oracle's own rounding is far below the 1e-4 that other backends are allowed."""
    exact = scene_to(scene, torch.float64)
    found = render_reference(scene.gaussians, scene.world_from_link, scene.cameras, ALL, scene.previous, scene.options)
    truth = render_reference(exact.gaussians, exact.world_from_link, exact.cameras, ALL, exact.previous, exact.options)
    clear = doubtful_pixels(scene) == 0
    for name, tolerance in {"rgb": 3e-5, "alpha": 3e-5, "depth": 1e-4, "flow": 2e-3}.items():
        difference = (getattr(found, name) - getattr(truth, name)).abs()[clear]
        assert difference.numel() == 0 or float(difference.max()) < tolerance, name
    assert torch.equal(found.link_id[clear] < 0, truth.link_id[clear] < 0)


def test_splitting_the_image_differently_changes_nothing(monkeypatch):
    from gworld.render import reference

    scene = agreement_scenes()[8]
    whole = render_reference(scene.gaussians, scene.world_from_link, scene.cameras)
    monkeypatch.setattr(reference, "MAX_PAIRS", 5000)
    split = render_reference(scene.gaussians, scene.world_from_link, scene.cameras)
    torch.testing.assert_close(split.rgb, whole.rgb, atol=1e-6, rtol=0)
    torch.testing.assert_close(split.alpha, whole.alpha, atol=1e-6, rtol=0)
