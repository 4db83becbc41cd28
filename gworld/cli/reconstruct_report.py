"""The facts of a reconstruction's report, gathered from its run: held-out pictures, cameras, gate, stages, masks."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gworld import __version__
from gworld.bench.rows import machine
from gworld.capture.gate import GateOptions
from gworld.evaluate.plans import CameraPlan
from gworld.evaluate.report import Baseline, HeldOutView, Limit, ReconstructionFacts
from gworld.reconstruct.fit import Fit
from gworld.render.api import RenderOptions
from gworld.render.metrics import psnr, ssim_map
from gworld.render.select import render
from gworld.render.video import read_video
from gworld.scene.cameras import resize_cameras
from gworld.scene.views import View, Views, cameras_of

SHOWN = 640
"""Longer side of the pictures that held-out views are compared at."""
POINTS, MASK_PICTURES = 4000, 8


@dataclass(frozen=True)
class HeldOut:
    """The held-out views as the report shows them, and the mean scores of copying the nearest fitted picture."""

    views: tuple[HeldOutView, ...]
    baseline: Baseline | None


def compare_held_out(views: Views, fit: Fit) -> HeldOut:
    """Draw every held-out view beside its picture, on the pixels that no mask ignores; and score its neighbour."""
    by_name = {view.name: view for view in views.views}
    shown, copied = [], []
    for name in fit.held_out:
        view = by_name[name]
        truth, keep = _picture(view)
        camera = resize_cameras(cameras_of(Views((view,))), truth.shape[1], truth.shape[0])
        options = RenderOptions(background=fit.background)
        with torch.no_grad():
            drawn = render(fit.gaussians, None, camera, outputs=("rgb",), options=options)
        assert drawn.rgb is not None
        image = drawn.rgb[0, 0].cpu().clamp(0, 1)
        scores = _scores(image, truth, keep)
        mask = None if keep is None else keep.numpy()
        shown.append(HeldOutView(name, *scores, _bytes(truth), _bytes(image), mask))
        near = _nearest(view, [by_name[other] for other in fit.names])
        if near is not None:
            copied.append(_scores(_picture(near)[0], truth, keep))
    baseline = None
    if copied:
        mean = np.mean(copied, axis=0)
        baseline = Baseline("the nearest fitted picture, copied", float(mean[0]), float(mean[1]))
    return HeldOut(tuple(shown), baseline)


def gather_facts(
    run: Path, views: Views, fit: Fit, stages: dict[str, Any], command: str, held: HeldOut, **more: Any
) -> ReconstructionFacts:
    """All of `ReconstructionFacts`; `more` are the figures that were measured after the fit."""
    found = stages.get("poses", {})
    quality = {key: float("nan") if value is None else value for key, value in found.get("quality", {}).items()}
    inputs = ", ".join(Path(fact["source"]).name for fact in stages.get("capture", {}).get("inputs", []))
    frame = found.get("frame", {})
    return ReconstructionFacts(
        title=run.name,
        source=f"{inputs or 'posed pictures'}; scale: {frame.get('scale', '')}; up: {frame.get('up', '')}",
        shots=int(quality.get("pictures", len(views))),
        registered=int(quality.get("registered", len(views))),
        command=command,
        config=(run / "config.yaml").read_text(encoding="utf-8"),
        version=__version__,
        how_posed=str(found.get("how", "")),
        metric=views.metric,
        gaussians=len(fit.gaussians),
        steps=fit.steps,
        peak_mb=fit.peak_mb,
        held_out=held.views,
        baseline=held.baseline,
        plan=_plan(views, fit),
        gate=tuple(_limits(quality)),
        history=tuple(_history(run / "metrics.csv")),
        stages={name: stage["seconds"] for name, stage in stages.items()},
        masks=tuple(_mask_pictures(run / "masks.mp4")),
        warnings=tuple(frame.get("warnings", ())),
        machine=machine(),
        **more,
    )


def _picture(view: View) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A view's picture [H,W,3] in 0..1, made smaller for the report, and which pixels count."""
    share = min(1.0, SHOWN / max(view.width, view.height))
    size = (max(1, round(view.width * share)), max(1, round(view.height * share)))
    with Image.open(str(view.image)) as picture:
        small = picture.convert("RGB").resize(size, Image.Resampling.BOX)
        truth = torch.from_numpy(np.asarray(small, np.float32) / 255)
    if view.mask is None:
        return truth, None
    with Image.open(str(view.mask)) as picture:
        keep = torch.from_numpy(np.asarray(picture.convert("L").resize(size, Image.Resampling.BOX)) > 250)
    return truth, keep


def _scores(image: torch.Tensor, truth: torch.Tensor, keep: torch.Tensor | None) -> tuple[float, float]:
    """PSNR and SSIM over the pixels that count; to SSIM's windows the others are right."""
    if keep is None:
        return float(psnr(image, truth)), float(ssim_map(image, truth).mean())
    if not bool(keep.any()):
        return float("nan"), float("nan")
    seen = torch.where(keep[..., None], image, truth)
    return float(psnr(image, truth, keep)), float(ssim_map(seen, truth)[keep].mean())


def _nearest(view: View, others: list[View]) -> View | None:
    same = [other for other in others if (other.width, other.height) == (view.width, view.height)]
    at = view.world_from_camera[:3, 3]
    return min(same, key=lambda other: float((other.world_from_camera[:3, 3] - at).norm()), default=None)


def _bytes(image: torch.Tensor) -> np.ndarray:
    return (image * 255).round().to(torch.uint8).numpy()


def _plan(views: Views, fit: Fit) -> CameraPlan:
    ordered = sorted(views.views, key=lambda view: (view.camera_id, view.time or 0.0, view.name))
    rigs = {number: index for index, number in enumerate(sorted({view.camera_id for view in ordered}))}
    halves = [
        (np.arctan(view.width / (2 * float(view.K[0, 0]))), np.arctan(view.height / (2 * float(view.K[1, 1]))))
        for view in ordered
    ]
    chosen = np.linspace(0, len(views.points) - 1, POINTS) if len(views.points) else np.zeros(0)
    rows = np.unique(chosen.astype(int))
    colors = views.colors[rows].numpy() if len(views.colors) else np.full((len(rows), 3), 128, np.uint8)
    return CameraPlan(
        world_from_camera=torch.stack([view.world_from_camera.double() for view in ordered]).numpy(),
        fields=np.array(halves, np.float64),
        rigs=np.array([rigs[view.camera_id] for view in ordered]),
        held_out=np.array([view.name in fit.held_out for view in ordered]),
        points=views.points[rows].double().numpy().reshape(-1, 3),
        colors=colors.reshape(-1, 3),
        metric=views.metric,
    )


def _limits(quality: dict[str, float]) -> Iterator[Limit]:
    """The gate's figures beside what it asks for; nothing where poses were given and nothing was measured."""
    if not quality or quality["error"] != quality["error"]:
        return
    asked = GateOptions()
    share = quality["registered"] / max(quality["pictures"], 1)
    yield Limit("pictures posed", f"{share:.0%}", f">= {asked.registered:.0%}", share >= asked.registered)
    rows = (
        ("reprojection error, pixels at 640", "error", "<=", asked.error),
        ("pictures that see a point", "track", ">=", asked.track),
        ("parallax, degrees", "parallax", ">=", asked.parallax),
        ("points", "points", ">=", asked.points),
        ("motion that contradicts the poses", "moving", "<=", asked.moving),
    )
    for name, key, sign, limit in rows:
        value = quality[key]
        ok = value >= limit if sign == ">=" else value <= limit
        yield Limit(name, f"{value:.3g}", f"{sign} {limit:g}", bool(ok))
    low, high = asked.field
    field = quality["field"]
    yield Limit("field of view, degrees", f"{field:.1f}", f"{low:g} to {high:g}", low <= field <= high)


def _history(path: Path) -> Iterator[dict[str, float]]:
    if path.is_file():
        with open(path, encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                yield {name: float(value) for name, value in row.items() if value}


def _mask_pictures(path: Path) -> Iterator[np.ndarray]:
    """A few frames of the overlay video, evenly spread."""
    if not path.is_file():
        return
    count = sum(1 for _ in read_video(path))
    wanted = set(np.linspace(0, count - 1, min(MASK_PICTURES, count)).round().astype(int).tolist())
    for index, frame in enumerate(read_video(path)):
        if index in wanted:
            yield frame
