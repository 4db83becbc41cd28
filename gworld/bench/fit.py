"""Fitting: held-out quality against time and against the number of Gaussians, on real photos and on exact truth."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.fit_scene import depth_error, tabletop_views
from gworld.bench.rows import Row, at_least, median_seconds
from gworld.capture.undistort import undistort_views
from gworld.formats.colmap import read_colmap
from gworld.reconstruct.appearance import AppearanceOptions, fit_exposure
from gworld.reconstruct.fit import Fit, fit_views
from gworld.reconstruct.optimise import choose_tools
from gworld.reconstruct.options import FitOptions
from gworld.reconstruct.pictures import Picture, read_album
from gworld.reconstruct.state import NAMES
from gworld.render.metrics import psnr
from gworld.render.native_train import adam_step, new_adam_state
from gworld.render.select import render
from gworld.scene.views import Views, split_views

GOAL = 27.0
LONGEST = 648
OBJECT = 0.2
"""Grey value above which a pixel of the skull photos (flash, dark room) is taken for the object."""


@dataclass(frozen=True)
class Effort:
    """How much a bench of fitting does."""

    budgets: tuple[str, ...] = ("1m", "3m", "5m", "10m")
    counts: tuple[int, ...] = (20_000, 50_000, 100_000)
    count_budget: str = "1m"
    peer_budget: str = "1m"
    longest: int = LONGEST
    table: tuple[int, int, int] = (48, 320, 240)
    table_budget: str = "1m"


QUICK = Effort(("4s",), (2000,), "4s", "4s", 96, (9, 64, 48), "4s")


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the generated table, then of the skull photos where `--data` holds them."""
    effort = QUICK if given.quick else Effort()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        yield from table_rows(effort, folder, given.seed)
        if given.data is None or not (given.data / "skull_ccby").is_dir():
            return
        views = undistort_views(read_colmap(given.data / "skull_ccby"), folder / "skull")
        options = FitOptions(longest=effort.longest, seed=given.seed, appearance=AppearanceOptions(poses=True))
        fit: Fit | None = None
        for budget in effort.budgets:
            fit = fit_views(views, replace(options, budget=budget), folder / budget)
            yield from fit_rows(f"skull, {budget}", fit, views, effort, GOAL if budget == "10m" else None)
        yield from count_rows(views, options, effort, folder)
        if fit is not None:
            yield from stage_rows(fit, views, effort)
        yield from peer_rows(views, options, effort, folder)


def table_rows(effort: Effort, folder: Path, seed: int) -> Iterator[Row]:
    """The generated scene: exact poses, exact pictures, exact depth."""
    views = tabletop_views(folder / "table", *effort.table, seed=seed)
    options = FitOptions(budget=effort.table_budget, seed=seed)
    fit = fit_views(views, options, folder / "table-run")
    assert fit.score is not None
    label = f"generated table, {effort.table_budget}"
    yield Row(f"{label}, held out, full frame", fit.score.psnr, "dB")
    yield Row(f"{label}, held out SSIM", fit.score.ssim, "")
    yield Row(f"{label}, Gaussians", len(fit.gaussians), "")
    yield Row(f"{label}, median error of depth", 1e3 * depth_error(fit.gaussians, split_views(views)[1]), "mm")


def fit_rows(label: str, fit: Fit, views: Views, effort: Effort, goal: float | None) -> Iterator[Row]:
    """Quality of one fit and what it took."""
    score = fit.score
    assert score is not None
    note = "right halves, exposure from the left"
    name = f"{label}, held out"
    yield (
        at_least(name, score.psnr_half, "dB", goal, note=note) if goal else Row(name, score.psnr_half, "dB", note=note)
    )
    yield Row(f"{name} SSIM", score.ssim_half, "", note=note)
    yield Row(f"{name}, object", object_psnr(fit, views, effort.longest), "dB", note=f"{note}; object only")
    yield Row(f"{name}, as drawn", score.psnr, "dB", note="full frame, no exposure fitted")
    yield Row(f"{name} SSIM, as drawn", score.ssim, "", note="full frame, no exposure fitted")
    yield Row(f"{label}, Gaussians", len(fit.gaussians), "")
    yield Row(f"{label}, steps", fit.steps, "", note=f"{fit.steps / fit.seconds:.1f} per second, {fit.seconds:.0f} s")


def count_rows(views: Views, options: FitOptions, effort: Effort, folder: Path) -> Iterator[Row]:
    """The two ways of density control at equal counts: classic first, for it may stay below its limit."""
    for limit in effort.counts:
        told = replace(options, budget=effort.count_budget, gaussians=limit)
        plain = fit_views(views, replace(told, density="classic"), folder / f"classic-{limit}")
        count = max(len(plain.gaussians), 1000)
        mine = fit_views(views, replace(told, gaussians=count), folder / f"mcmc-{limit}")
        assert mine.score is not None and plain.score is not None
        label = f"skull, {effort.count_budget}, {count / 1000:.0f}k of at most {limit / 1000:.0f}k Gaussians"
        better = mine.score.psnr_half - plain.score.psnr_half
        yield Row(f"{label}, mcmc", mine.score.psnr_half, "dB", baseline=plain.score.psnr_half)
        yield Row(f"{label}, mcmc SSIM", mine.score.ssim_half, "", baseline=plain.score.ssim_half)
        yield at_least(f"{label}, mcmc - classic", better, "dB", 0.0)


def stage_rows(fit: Fit, views: Views, effort: Effort) -> Iterator[Row]:
    """Milliseconds of each part of a step at full resolution, with the Gaussians that a fit ended with."""
    fitted = read_album(split_views(views)[0], effort.longest, 1, torch.device("cpu"))
    picture = fitted.levels[0][0]
    leaves = {name: getattr(fit.gaussians, name).clone().requires_grad_() for name in NAMES}
    gaussians, truth, tools = replace(fit.gaussians, **leaves), picture.truth, choose_tools(torch.device("cpu"))

    def draw() -> torch.Tensor:
        image = render(gaussians, None, picture.camera, outputs=("rgb",), backend="native-cpu").rgb
        assert image is not None
        return image[0, 0]

    flat = draw().detach().requires_grad_()
    image = draw()
    incoming = torch.autograd.grad(tools.loss(flat, truth), flat)[0]
    gradients = dict(zip(NAMES, torch.autograd.grad(image, list(leaves.values()), incoming), strict=True))
    plain = {name: value.detach().clone() for name, value in leaves.items()}
    state, rates = new_adam_state(plain), dict.fromkeys(NAMES, 1e-6)

    def whole() -> None:
        drawn = draw()
        found = torch.autograd.grad(tools.loss(drawn, truth), list(leaves.values()))
        adam_step(plain, dict(zip(NAMES, found, strict=True)), state, rates, rows="touched")

    parts: dict[str, Callable[[], object]] = {
        "render forward, kept for backward": draw,
        "loss with gradient": lambda: torch.autograd.grad(tools.loss(flat, truth), flat),
        "Adam": lambda: adam_step(plain, gradients, state, rates, rows="touched"),
    }
    spent = {name: 1e3 * median_seconds(part) for name, part in parts.items()}
    total = 1e3 * median_seconds(whole)
    label = f"skull, {len(fit.gaussians) / 1000:.0f}k Gaussians, {picture.camera.width}x{picture.camera.height}"
    for name, value in spent.items():
        yield Row(f"{label}, {name}", value, "ms")
    yield Row(f"{label}, render backward", total - sum(spent.values()), "ms", note="the rest of the step")
    yield Row(f"{label}, these together", total, "ms")
    taken = 1e3 * fit.seconds / max(fit.steps, 1)
    yield Row(f"{label}, mean step of the whole fit", taken, "ms", note="all resolutions, density, scores, files")


def peer_rows(views: Views, options: FitOptions, effort: Effort, folder: Path) -> Iterator[Row]:
    """The same recipe on the torch tile renderer, the one other path that runs on any CPU, for the same time."""
    told = replace(options, budget=effort.peer_budget, gaussians=effort.counts[0])
    slow = fit_views(views, replace(told, backend="reference", score_every=0), folder / "reference")
    fast = fit_views(views, replace(told, score_every=60), folder / "native")
    assert slow.score is not None and fast.score is not None
    label = f"skull, {effort.peer_budget}"
    yield Row(f"{label}, native, held out", fast.score.psnr_half, "dB", baseline=slow.score.psnr_half)
    yield Row(f"{label}, native, steps", fast.steps, "", baseline=slow.steps)
    reached = [row["seconds"] for row in fast.history if row["psnr_half"] >= slow.score.psnr_half]
    name = f"{label}, torch renderer's time to its quality / native's"
    yield at_least(name, slow.seconds / reached[0] if reached else 0.0, "x", 10.0)


def object_psnr(fit: Fit, views: Views, longest: int) -> float:
    """PSNR on the bright object alone, right halves, after gain and offset of the left halves."""
    unseen = read_album(split_views(views)[1], longest, 1, torch.device("cpu"))
    return statistics.fmean(_object_psnr(fit, picture) for picture in unseen.levels[0])


def _object_psnr(fit: Fit, picture: Picture) -> float:
    with torch.no_grad():
        rgb = render(fit.gaussians, None, picture.camera, outputs=("rgb",)).rgb
    assert rgb is not None
    image, truth, half = rgb[0, 0].clamp(0, 1), picture.truth, picture.rgb.shape[1] // 2
    gain, offset = fit_exposure(image[:, :half], truth[:, :half])
    right, right_truth = (image[:, half:] * gain + offset).clamp(0, 1), truth[:, half:]
    return float(psnr(right, right_truth, object_mask(right_truth)))


def object_mask(truth: torch.Tensor) -> torch.Tensor:
    """Pixels brighter than the room, after a small blur that closes holes."""
    grey = torch.nn.functional.avg_pool2d(truth.mean(-1)[None, None], 9, 1, 4, count_include_pad=False)
    return grey[0, 0] > OBJECT
