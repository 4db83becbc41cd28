"""The fused Adam step against torch's and against the sparse rule written out, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gworld.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from gworld.errors import InputError
from gworld.render.native import native_cpu_status, native_isas
from gworld.render.native_train import (
    AdamOptions,
    AdamState,
    adam_state_from,
    adam_state_tensors,
    adam_step,
    new_adam_state,
)

pytestmark = pytest.mark.skipif(
    native_cpu_status() is not None, reason="the native library is not built (cmake -S cuda_ext -B build)"
)
isas = native_isas() if native_cpu_status() is None else ()
WIDTHS = {"means": (3,), "quats": (4,), "opacity": (), "low": (1, 3), "sh": (15, 3)}


@pytest.fixture(autouse=True, params=isas)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GWORLD_ISA", request.param)
    monkeypatch.setenv("GWORLD_THREADS", "2")
    yield request.param


def gaussians(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, *tail, generator=generator) for name, tail in WIDTHS.items()}


def rates() -> dict[str, float]:
    return {name: 0.01 * (index + 1) for index, name in enumerate(WIDTHS)}


def sparse_by_torch(
    params: dict[str, Tensor],
    gradients: dict[str, Tensor],
    moments: dict[str, tuple[Tensor, Tensor]],
    visible: Tensor,
    step: int,
    options: AdamOptions,
) -> None:
    """The sparse rule in double precision, in place: rows that are not visible keep everything."""
    for name, param in params.items():
        first, second = moments[name]
        g = gradients[name][visible].double()
        first[visible] = options.beta1 * first[visible] + (1 - options.beta1) * g
        second[visible] = options.beta2 * second[visible] + (1 - options.beta2) * g * g
        m, v = first[visible], second[visible]
        if options.bias_correction:
            m, v = m / (1 - options.beta1**step), v / (1 - options.beta2**step)
        param[visible] -= rates()[name] * m / (v.sqrt() + options.eps)


def test_dense_adam_is_that_of_torch() -> None:
    params = gaussians(1203)
    peers = {name: param.clone().requires_grad_() for name, param in params.items()}
    groups = [{"params": [peers[name]], "lr": rate} for name, rate in rates().items()]
    peer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-8)
    state, options = new_adam_state(params), AdamOptions(0.9, 0.99, 1e-8)
    for step in range(5):
        gradients = {name: value * 10.0 ** (step - 3) for name, value in gaussians(1203, step + 1).items()}
        for name in params:
            peers[name].grad = gradients[name].clone()
        peer.step()
        state = adam_step(params, gradients, state, rates(), options=options)
    assert state.step == 5
    for name, param in params.items():
        torch.testing.assert_close(param, peers[name].detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(state.first[name], peer.state[peers[name]]["exp_avg"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(state.second[name], peer.state[peers[name]]["exp_avg_sq"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_sparse_adam_is_its_rule(share: float) -> None:
    for count in (1, 15, 700):
        options = AdamOptions(bias_correction=count != 15)
        masked, touched = gaussians(count), gaussians(count)
        expected = {name: param.double() for name, param in masked.items()}
        moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
        states = [new_adam_state(masked), new_adam_state(touched)]
        for step in range(1, 4):
            visible = torch.rand(count, generator=torch.Generator().manual_seed(step)) < share
            gradients = gaussians(count, step)
            hidden = {name: g * visible.view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}
            states[0] = adam_step(masked, gradients, states[0], rates(), options=options, rows=visible)
            states[1] = adam_step(touched, hidden, states[1], rates(), options=options, rows="touched")
            sparse_by_torch(expected, gradients, moments, visible, step, options)
        for name in expected:
            torch.testing.assert_close(masked[name].double(), expected[name], rtol=2e-6, atol=2e-6)
            assert torch.equal(masked[name], touched[name])
            assert torch.equal(states[0].first[name], states[1].first[name])
            assert torch.equal(states[0].second[name], states[1].second[name])


def test_one_number_touches_a_row() -> None:
    for name, tail in WIDTHS.items():
        for bad in (1e-30, -1.0, float("nan")):
            params, before = gaussians(40), gaussians(40)
            gradients = {key: torch.zeros_like(param) for key, param in params.items()}
            gradients[name].view(40, -1)[23, -1 if tail else 0] = bad
            start = AdamState(0, gaussians(40, 5), {key: value.square() for key, value in gaussians(40, 6).items()})
            adam_step(params, gradients, start, rates(), rows="touched")
            for key in params:
                changed = (params[key] != before[key]).view(40, -1).any(1)
                assert changed.nonzero().flatten().tolist() == [23]


def test_adam_has_the_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows in ("all", "touched", torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.4):
        found = []
        for threads in ("1", "2", "5"):
            monkeypatch.setenv("GWORLD_THREADS", threads)
            params, state = gaussians(3000), new_adam_state(gaussians(3000))
            for step in range(2):
                state = adam_step(params, gaussians(3000, step + 1), state, rates(), rows=rows)
            found.append({**params, **adam_state_tensors(state)})
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])


def test_adam_state_survives_a_checkpoint(tmp_path: Path) -> None:
    params = gaussians(50)
    state = adam_step(params, gaussians(50, 1), new_adam_state(params), rates())
    save_checkpoint(tmp_path, Checkpoint(1, adam_state_tensors(state)))
    folder = latest_checkpoint(tmp_path)
    assert folder is not None
    again = adam_state_from(load_checkpoint(folder).tensors)
    others = {name: param.clone() for name, param in params.items()}
    for step in (2, 3):
        state = adam_step(params, gaussians(50, step), state, rates())
        again = adam_step(others, gaussians(50, step), again, rates())
    assert again.step == state.step == 3
    assert all(torch.equal(params[name], others[name]) for name in params)
    with pytest.raises(InputError, match="lacks its step"):
        adam_state_from({"first.means": params["means"]})


def test_adam_on_leaves_is_noticed_by_autograd() -> None:
    leaf = torch.ones(4, 3, requires_grad=True)
    squared = (leaf * leaf).sum()
    state = new_adam_state({"means": leaf})
    assert not state.first["means"].requires_grad
    adam_step({"means": leaf}, {"means": torch.ones(4, 3)}, state, {"means": 0.1})
    assert torch.allclose(leaf, torch.full((4, 3), 0.9))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.backward()
    before = leaf.detach().clone()
    adam_step({"means": leaf}, {"means": None}, state, {"means": 0.1}, rows="touched")
    assert torch.equal(leaf.detach(), before)


def test_bad_adam_steps_are_one_sentence() -> None:
    params, gradients = gaussians(6), gaussians(6, 1)
    state = new_adam_state(params)

    def refused(words: str, **changes: object) -> None:
        arguments = {"params": params, "gradients": gradients, "state": state, "learning_rates": rates(), **changes}
        with pytest.raises(InputError, match=words):
            adam_step(**arguments)  # type: ignore[arg-type]

    refused("no moments or no learning rate", learning_rates={})
    refused("no moments or no learning rate", state=AdamState(0, {}, {}))
    refused("its gradient", gradients={**gradients, "means": torch.ones(5, 3)})
    refused("contiguous float32", params={**params, "means": params["means"].double()})
    refused("contiguous float32", params={**params, "means": torch.ones(3, 6).T})
    refused("betas", options=AdamOptions(beta1=1.0))
    refused(r"bool \[N\] on the CPU", rows=torch.ones(6))
    refused("one row per Gaussian", rows=torch.ones(5, dtype=torch.bool))
    refused("rows is 'some'", rows="some")
    mixed = {**params, "means": torch.ones(5, 3)}
    refused("one row per Gaussian", params=mixed, gradients=mixed, state=new_adam_state(mixed), rows="touched")
    assert adam_step({}, {}, AdamState(0, {}, {}), {}, rows="touched").step == 1
    nobody = gaussians(0)
    for rows in ("all", "touched", torch.ones(0, dtype=torch.bool)):
        assert adam_step(nobody, nobody, new_adam_state(nobody), rates(), rows=rows).step == 1
