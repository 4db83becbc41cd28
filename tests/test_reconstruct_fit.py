"""Fits of a generated scene: better than where they began, right about exposure and poses, deaf to what is masked."""

from __future__ import annotations

import csv
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gworld.bench.fit_scene import tabletop_views
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.files import read_json
from gworld.geometry import se3_exp, se3_log
from gworld.reconstruct import loop as loop_module
from gworld.reconstruct import step as step_module
from gworld.reconstruct.appearance import AppearanceOptions
from gworld.reconstruct.fit import fit_views
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pictures import read_album
from gworld.reconstruct.schedule import FILE
from gworld.reconstruct.step import random_source, view_at
from gworld.reconstruct.visibility import in_the_way
from gworld.scene.views import Views

PLAIN = AppearanceOptions(exposure=False)
SHORT = FitOptions(
    steps=300, gaussians=3000, sh_degree=1, score_every=3, save_every=1e9, device="cpu", appearance=PLAIN
)


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> Views:
    return tabletop_views(tmp_path_factory.mktemp("table"), 18, 80, 60, spacing=0.03)


@pytest.mark.parametrize("density", ["mcmc", "classic"])
def test_a_fit_draws_views_it_has_not_seen(views: Views, tmp_path: Path, density: str) -> None:
    told: list[tuple[str, float]] = []
    options = replace(SHORT, density=density)
    fit = fit_views(views, options, tmp_path, progress=lambda text, share: told.append((text, share)))
    assert fit.score is not None and fit.score.psnr > 19 and fit.score.ssim > 0.7
    scores = [row["psnr"] for row in fit.history]
    assert len(scores) == 3 and scores[-1] > scores[0]
    assert fit.steps == 300 and fit.skipped == 0 and len(fit.gaussians) <= 3000
    assert len(fit.names) == 15 and len(fit.held_out) == 3 and set(fit.score.views) == set(fit.held_out)
    assert [share for _, share in told] == sorted(share for _, share in told) and "held out" in told[-1][0]
    with open(tmp_path / "metrics.csv", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[-1]["psnr"]) == pytest.approx(scores[-1], abs=1e-3) and rows[-1]["step"] == "300"
    with Image.open(tmp_path / "previews" / "step-000300.png") as preview:
        assert preview.size == (240, 60)
    assert fit.exposures is None and torch.equal(fit.world_from_camera[0], views.views[1].world_from_camera.float())


def test_exposure_of_each_picture_is_found(views: Views, tmp_path: Path) -> None:
    gains = torch.linspace(-0.25, 0.25, len(views))
    shots = []
    for view, gain in zip(views.views, gains.tolist(), strict=True):
        assert view.image is not None
        pixels = np.asarray(Image.open(view.image), np.float32) * 0.7 * math.exp(gain)
        path = tmp_path / view.name
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        shots.append(replace(view, image=path))
    dimmed = replace(views, views=tuple(shots))
    options = replace(SHORT, appearance=AppearanceOptions(exposure=True, exposure_rate=1e-2))
    fit = fit_views(dimmed, options, tmp_path / "run")
    assert fit.exposures is not None and fit.score is not None
    fitted = torch.tensor([gain for index, gain in enumerate(gains.tolist()) if index % 8])
    found = fit.exposures[:, :3].mean(1)
    correlation = torch.corrcoef(torch.stack([found, fitted - fitted.mean()]))[0, 1]
    assert float(correlation) > 0.9
    without = fit_views(dimmed, SHORT, tmp_path / "without")
    assert without.score is not None and fit.score.psnr_half > without.score.psnr_half


def test_poses_are_refined_towards_the_truth(views: Views, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    errors = 0.01 * torch.randn(len(views), 6, generator=generator)
    moved = tuple(
        replace(view, world_from_camera=view.world_from_camera @ se3_exp(error))
        for view, error in zip(views.views, errors, strict=True)
    )
    options = replace(SHORT, appearance=replace(PLAIN, poses=True, pose_rate=1e-3))
    fit = fit_views(replace(views, views=moved), options, tmp_path)
    names = {view.name: index for index, view in enumerate(views.views)}
    left, before = [], []
    for name, pose in zip(fit.names, fit.world_from_camera, strict=True):
        truth = views.views[names[name]].world_from_camera
        left.append(se3_log(torch.linalg.inv(truth) @ pose)[3:].norm())
        before.append(errors[names[name], 3:].norm())
    assert float(torch.stack(left).mean()) < 0.75 * float(torch.stack(before).mean())


def test_what_is_masked_leaves_no_trace(views: Views, tmp_path: Path) -> None:
    shots = {False: [], True: []}
    for view in views.views:
        assert view.image is not None
        mask = np.full((60, 80), 255, np.uint8)
        mask[20:44, 30:60] = 0
        Image.fromarray(mask).save(tmp_path / f"mask-{view.name}")
        for painted in (False, True):
            pixels = np.array(Image.open(view.image))
            if painted:
                pixels[20:44, 30:60] = (255, 0, 255)
            path = tmp_path / f"{painted}-{view.name}"
            Image.fromarray(pixels).save(path)
            shots[painted].append(replace(view, image=path, mask=tmp_path / f"mask-{view.name}"))
    options = replace(SHORT, steps=40, hold_out=0, gaussians=3200)
    plain, painted = (
        fit_views(replace(views, views=tuple(shots[kind])), options, tmp_path / f"run{kind}") for kind in (False, True)
    )
    assert torch.equal(plain.gaussians.means, painted.gaussians.means)
    assert torch.equal(plain.gaussians.sh, painted.gaussians.sh) and plain.score is None


def test_depth_and_every_background_train(views: Views, tmp_path: Path) -> None:
    shots = []
    for view in views.views:
        path = tmp_path / f"depth-{view.name}"
        Image.fromarray(np.full((60, 80), 1900, np.uint16)).save(path)
        shots.append(replace(view, depth=path))
    deep = replace(views, views=tuple(shots), depth_scale=0.001)
    for background in ("black", "white", "random", "learned"):
        options = replace(SHORT, steps=12, background=background, gaussians=1000)
        fit = fit_views(deep, options, tmp_path / background)
        assert fit.skipped == 0 and bool(fit.gaussians.means.isfinite().all())
        assert fit.background == ((1.0, 1.0, 1.0) if background == "white" else fit.background)


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step_module.draw

    def poisoned(setting, gaussians, picture, pose, background=None):  # type: ignore[no-untyped-def] # as the original
        drawn = original(setting, gaussians, picture, pose, background)
        poisoned.calls += 1
        return replace(drawn, image=drawn.image * math.nan) if poisoned.calls == 5 else drawn

    poisoned.calls = 0
    monkeypatch.setattr(step_module, "draw", poisoned)
    fit = fit_views(views, replace(SHORT, steps=10, score_every=0), tmp_path)
    assert fit.skipped == 1 and fit.steps == 10
    assert all(bool(value.isfinite().all()) for value in (fit.gaussians.means, fit.gaussians.sh))


def test_the_torch_twin_fits_on_the_reference_renderer(
    views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = fit_views(views, replace(SHORT, steps=8, gaussians=500), tmp_path / "native")
    monkeypatch.setattr("gworld.reconstruct.optimise.native_cpu_status", lambda: "not here")
    twin = fit_views(views, replace(SHORT, steps=8, gaussians=500, backend="reference"), tmp_path / "twin")
    assert native.score is not None and twin.score is not None
    assert twin.score.psnr == pytest.approx(native.score.psnr, abs=0.1)


def test_a_budget_plans_the_steps(views: Views, tmp_path: Path) -> None:
    fit = fit_views(views, replace(SHORT, budget="3s", score_every=0), tmp_path)
    plan = read_json(tmp_path / FILE)
    assert fit.steps == plan[-1][0] + plan[-1][2] >= 11 and fit.steps != SHORT.steps


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"sh_degree": 4}, UsageError),
        ({"ssim_weight": 2.0}, UsageError),
        ({"hold_out": 1}, UsageError),
        ({"budget": "soon"}, UsageError),
        ({"gaussians": -1}, UsageError),
        ({"appearance": AppearanceOptions(distortion_px=1e3)}, UsageError),
    ],
)
def test_options_that_make_no_sense(views: Views, tmp_path: Path, change: dict, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        fit_views(views, replace(SHORT, **change), tmp_path)


def test_too_few_views_and_missing_devices(views: Views, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 are needed"):
        fit_views(replace(views, views=views.views[:2]), SHORT, tmp_path)
    with pytest.raises(InputError, match="one name"):
        fit_views(replace(views, views=views.views[:3] * 2), SHORT, tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(MissingBackendError, match="--device cpu"):
            fit_views(views, replace(SHORT, device="cuda"), tmp_path)


def test_control_c_keeps_what_was_reached(views: Views, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loop_module.take_step

    def interrupted(setting, state, progress):  # type: ignore[no-untyped-def] # as the original
        if state.step == 20:
            signal.raise_signal(signal.SIGINT)
        return original(setting, state, progress)

    monkeypatch.setattr(loop_module, "take_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit_views(views, replace(SHORT, steps=40), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before and (tmp_path / "checkpoints" / "step-21").is_dir()
    monkeypatch.setattr(loop_module, "take_step", original)
    assert fit_views(views, replace(SHORT, steps=40), tmp_path, resume=True).steps == 40


def test_haze_before_a_camera_is_found(views: Views) -> None:
    album = read_album(views, 80, 1, torch.device("cpu"))
    camera = album.levels[0][3].camera.world_from_camera[0]
    ahead = camera[:3, 3] + torch.tensor([[0.1], [0.4], [1.5], [-0.1]]) * camera[:3, 2]
    assert in_the_way(album, ahead, 0.5).tolist() == [True, True, False, False]


def test_every_epoch_shows_every_view_once() -> None:
    for epoch in range(3):
        assert sorted(view_at(5, epoch * 7 + index, 7) for index in range(7)) == list(range(7))
    orders = [[view_at(5, epoch * 7 + index, 7) for index in range(7)] for epoch in range(4)]
    assert len({tuple(order) for order in orders}) > 1
    draws = {float(torch.rand(1, generator=random_source(seed, purpose, 3))) for seed in (0, 1) for purpose in (1, 2)}
    assert len(draws) == 4
