"""Density control keeps the picture, its budget and the optimiser in step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gworld.reconstruct.classic import centre_pull, control_classic, reset_opacity
from gworld.reconstruct.density import add_noise, control_mcmc, split_evenly
from gworld.reconstruct.state import gaussians_of
from gworld.render.native_train import AdamState, new_adam_state
from gworld.render.select import render
from gworld.scene.cameras import Cameras, intrinsics, look_at


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_params(count: int = 50, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = source(seed)
    return {
        "means": torch.randn(count, 3, generator=generator),
        "quats_wxyz": torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1),
        "log_scales": torch.randn(count, 3, generator=generator) * 0.3 - 3,
        "opacity_logits": torch.randn(count, generator=generator),
        "sh": torch.randn(count, 4, 3, generator=generator),
    }


def filled_adam(params: dict[str, torch.Tensor]) -> AdamState:
    state = new_adam_state(params)
    for moments in (state.first, state.second):
        for value in moments.values():
            value.fill_(1.0)
    return state


@given(opacity=st.floats(0.01, 0.99), copies=st.integers(1, 30))
@settings(deadline=None, max_examples=60)
def test_a_stack_of_copies_has_the_old_opacity_and_the_old_integral(opacity: float, copies: int) -> None:
    new, factor = split_evenly(torch.tensor([opacity]), torch.tensor([copies]))
    assert math.isclose(1 - (1 - float(new)) ** copies, opacity, rel_tol=1e-4)
    # Opacity of N coinciding Gaussians along a line through them, integrated numerically; sigma 1 before.
    x = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    after = 1 - (1 - float(new) * (-0.5 * (x / float(factor)) ** 2).exp()) ** copies
    assert math.isclose(float(after.sum()), float((opacity * (-0.5 * x**2).exp()).sum()), rel_tol=1e-3)


def test_splitting_agrees_with_the_published_kernel_on_one_copy_and_two() -> None:
    new, factor = split_evenly(torch.tensor([0.75, 0.75]), torch.tensor([1, 2]))
    assert torch.allclose(new, torch.tensor([0.75, 0.5])) and float(factor[0]) == pytest.approx(1.0)
    # Eq. 9 with N = 2, o' = 0.5: 0.5 + (0.5 - 0.25 / sqrt 2).
    assert float(factor[1]) == pytest.approx(0.75 / (1.0 - 0.25 / math.sqrt(2)), rel=1e-6)


def test_the_dead_are_put_onto_the_living_and_the_picture_stays() -> None:
    params = some_params()
    params["opacity_logits"][:10] = -9.0
    params["opacity_logits"][10:] = 0.5
    camera = Cameras(intrinsics(64, 48, 0.9)[None], look_at(torch.tensor([[0.0, -6, 0]]), torch.zeros(1, 3)), 64, 48)
    before = render(gaussians_of(params), None, camera, backend="reference").alpha
    adam = filled_adam(params)
    grown = control_mcmc(params, adam, 60, torch.zeros(50, dtype=torch.bool), source())
    after = render(gaussians_of(grown.params), None, camera, backend="reference").alpha
    assert len(grown.params["means"]) == 60 and grown.added == 10 and len(grown.moved) == 10
    assert bool((grown.params["opacity_logits"].sigmoid() > 0.005).all())
    assert before is not None and after is not None
    # Equal in centre opacity and integral, not pointwise: the largest stacks differ a little on their flanks.
    assert float((before - after).abs().mean()) < 0.01
    for moments in (grown.adam.first, grown.adam.second):
        for name, value in moments.items():
            assert len(value) == 60 and not value[grown.moved].any() and not value[50:].any(), name
            assert bool((value == 1).any())


def test_broken_and_unseen_rows_are_replaced() -> None:
    params = some_params()
    params["means"][3, 0] = math.nan
    params["opacity_logits"][4] = math.inf
    unseen = torch.zeros(50, dtype=torch.bool)
    unseen[7] = True
    grown = control_mcmc(params, new_adam_state(params), 50, unseen, source())
    assert {3, 4, 7} <= set(grown.moved.tolist())
    assert all(bool(value.isfinite().all()) for value in grown.params.values())


def test_nothing_alive_is_left_alone() -> None:
    params = some_params(4)
    params["opacity_logits"].fill_(-20)
    grown = control_mcmc(params, new_adam_state(params), 8, torch.zeros(4, dtype=torch.bool), source())
    assert len(grown.params["means"]) == 4 and not len(grown.moved)


def test_noise_moves_the_faint_along_their_shape_and_spares_the_solid() -> None:
    params = some_params(2000)
    params["quats_wxyz"] = torch.tensor([1.0, 0, 0, 0]).repeat(2000, 1)
    params["log_scales"] = torch.tensor([-1.0, -3.0, -5.0]).repeat(2000, 1)
    params["opacity_logits"][:1000] = -7
    params["opacity_logits"][1000:] = 3
    before = params["means"].clone()
    add_noise(params, 1.6e-5, 1.0, source())
    moved = (params["means"] - before).abs()
    assert not moved[1000:].any()
    spread = moved[:1000].mean(0)
    assert float(spread[0] / spread[1]) == pytest.approx(math.exp(4), rel=0.1)


def test_noise_means_the_same_in_other_units() -> None:
    small, large = some_params(100), some_params(100)
    for params in (small, large):
        params["opacity_logits"].fill_(-6)
    large["means"] *= 10
    large["log_scales"] += math.log(10)
    add_noise(small, 1e-6, 1.0, source())
    add_noise(large, 1e-6, 10.0, source())
    assert torch.allclose(large["means"], 10 * small["means"], rtol=1e-4, atol=1e-4)


def test_classic_control_clones_splits_prunes_within_the_limit() -> None:
    params = some_params(40)
    params["log_scales"][:10] = -6
    params["log_scales"][10:20] = -1.5
    params["log_scales"][20:] = -3
    params["opacity_logits"].fill_(1.0)
    params["opacity_logits"][39] = -9
    pull = torch.zeros(40)
    pull[:20] = 1e-3
    adam = filled_adam(params)
    grown = control_classic(params, adam, pull, 100, 1.0, source())
    assert grown.added == 20 and len(grown.params["means"]) == 59
    assert torch.equal(grown.params["means"][39:49], grown.params["means"][:10]), "clones lie on their originals"
    assert float(grown.params["log_scales"][10:20].max()) == pytest.approx(-1.5 - math.log(1.6))
    assert all(len(value) == 59 for value in grown.adam.first.values())
    limited = control_classic(some_params(40), filled_adam(params), pull, 45, 1.0, source())
    assert len(limited.params["means"]) <= 45
    reset_opacity(grown.params, grown.adam)
    assert float(grown.params["opacity_logits"].sigmoid().max()) <= 0.0101


def test_the_pull_on_centres_is_the_gradient_by_their_pixels() -> None:
    camera = Cameras(
        intrinsics(200, 100, 0.9)[None], look_at(torch.tensor([[0.3, -4.0, 1]]), torch.zeros(1, 3)), 200, 100
    )
    means = (torch.randn(20, 3, generator=source()) * 0.2).double().requires_grad_()
    pose, K = camera.world_from_camera[0].double(), camera.K[0].double()
    local = (means - pose[:3, 3]) @ pose[:3, :3]
    pixels = local[:, :2] / local[:, 2:] * K[0, 0]
    by_pixel = torch.randn(20, 2, generator=source(1)).double()
    (gradient,) = torch.autograd.grad((pixels * by_pixel).sum(), means)
    found = centre_pull(gradient.float(), means.detach().float(), camera)
    assert torch.allclose(found, (by_pixel.norm(dim=1) * 100).float(), rtol=0.03)
