"""The torch twins do what the native tools do."""

from __future__ import annotations

import pytest
import torch

from gworld.reconstruct.optimise import choose_tools, decayed, gaussians_step, torch_adam, torch_loss
from gworld.render.native_train import AdamOptions, adam_step, l1_ssim_loss, new_adam_state


def pictures(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(24, 31, 3, generator=generator)
    return (truth + 0.2 * torch.rand(24, 31, 3, generator=generator)).requires_grad_(), truth


@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
def test_loss_and_gradient_equal_the_native_ones(masked: torch.dtype | None) -> None:
    image, truth = pictures()
    mask = None if masked is None else (torch.rand(24, 31, generator=torch.Generator().manual_seed(2)) > 0.4).to(masked)
    if masked is torch.float32 and mask is not None:
        mask = mask * 0.7
    for weight in (0.0, 0.2, 1.0):
        mine, native = (f(image, truth, ssim_weight=weight, mask=mask) for f in (torch_loss, l1_ssim_loss))
        assert float(mine.detach()) == pytest.approx(float(native.detach()), abs=2e-6)
        by_mine, by_native = (torch.autograd.grad(value, image)[0] for value in (mine, native))
        assert torch.allclose(by_mine, by_native, atol=2e-7)


@pytest.mark.parametrize("rows", ["all", "touched", "mask"])
def test_adam_equals_the_native_one(rows: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (20, 3), "b": (20,), "c": (20, 4, 3)}
    start = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    chosen = torch.rand(20, generator=generator) > 0.5 if rows == "mask" else rows
    results = []
    for adam in (adam_step, torch_adam):
        params = {name: value.clone() for name, value in start.items()}
        state, noise = new_adam_state(params), torch.Generator().manual_seed(3)
        for step in range(5):
            gradients = {name: torch.randn(shape, generator=noise) for name, shape in shapes.items()}
            for value in gradients.values():
                value[step : step + 5] = 0
            options = AdamOptions(bias_correction=step < 3)
            state = adam(params, gradients, state, dict.fromkeys(shapes, 1e-2), options=options, rows=chosen)
        results.append((params, state))
    (one, one_state), (two, two_state) = results
    assert one_state.step == two_state.step == 5
    for name in shapes:
        assert torch.allclose(one[name], two[name], atol=1e-6)
        assert torch.allclose(one_state.second[name], two_state.second[name], atol=1e-7)


def test_the_mean_colour_learns_twenty_times_faster_in_one_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    params = {"sh": torch.randn(10, 9, 3, generator=generator)}
    apart = {"dc": params["sh"][:, :1].clone(), "rest": params["sh"][:, 1:].clone()}
    state, state_apart = new_adam_state(params), new_adam_state(apart)
    tools, rows = choose_tools(torch.device("cpu")), torch.ones(10, dtype=torch.bool)
    for _ in range(20):
        gradient = torch.randn(10, 9, 3, generator=generator)
        state = gaussians_step(tools, params, {"sh": gradient}, state, {"sh": 2e-3}, rows)
        split = {"dc": gradient[:, :1].contiguous(), "rest": gradient[:, 1:].contiguous()}
        state_apart = tools.adam(apart, split, state_apart, {"dc": 2e-3, "rest": 1e-4}, rows=rows)
    assert torch.allclose(params["sh"], torch.cat([apart["dc"], apart["rest"]], 1), atol=2e-6)


def test_tools_and_rates() -> None:
    assert choose_tools(torch.device("cpu"), native=False).adam is torch_adam
    assert decayed(2.0, 0.01, 0.0) == 2.0 and decayed(2.0, 0.01, 1.0) == pytest.approx(0.02)
    assert decayed(2.0, 0.01, 7.0) == pytest.approx(0.02)
