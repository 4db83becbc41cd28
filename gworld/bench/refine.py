"""Refining: what it gains on views that fall short, what it costs where all is well, beside filters and plain networks.

The scene that is judged by is the demo's tabletop. *Cross-scene* is the refiner that comes with gworld, which learned
from other rooms; *own scene* one that learned from pairs of this scene's own photos. Held-out views and the film are
in no fit, no pair and no reference of either.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.refine_measures import bilateral, disagreement, edge_shift, flicker, quality, total_variation
from gworld.bench.refine_scene import (
    Stage,
    film_cameras,
    held_out_cameras,
    judged,
    photo_cameras,
    short_fits,
    tabletop_stage,
    take_photos,
)
from gworld.bench.rows import Row, at_least, at_most, median_seconds, peak_growth
from gworld.capture.undistort import undistort_views
from gworld.data.pairset import Pair
from gworld.errors import InputError
from gworld.formats.colmap import read_colmap
from gworld.reconstruct.pairs import (
    PairOptions,
    Scene,
    cameras_at,
    fit_scene,
    look,
    scene_pairs,
    true_pictures,
)  # fmt: skip
from gworld.refine.network import Refiner, RefinerConfig, count_parameters
from gworld.refine.sample import Film, changed_share, refine_clip
from gworld.refine.saved import load_refiner
from gworld.refine.train import TrainConfig, train
from gworld.render.conditions import stream_clip
from gworld.render.metrics import psnr
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.views import Views

SWITCHES = ("references", "previous", "temporal", "depth", "points", "links", "flow", "confidence", "noise", "gate")
PAIRS = PairOptions(hold_out=0, keep=(4,), early=(0.1,), ways=("sparse", "underfit"))
LEARNING = TrainConfig(steps=250)


@dataclass(frozen=True)
class Effort:
    """How much the bench does."""

    size: tuple[int, int] = (160, 120)
    photos: int = 24
    views: int = 8
    frames: int = 12
    asides: tuple[float, ...] = (0.1, 0.25, 0.5)
    pairs: PairOptions = PAIRS
    train: TrainConfig = LEARNING
    width: int = 24
    spacing: float = 0.012
    loop: int = 600
    sides: tuple[int, ...] = (128, 192, 256)
    switches: tuple[str, ...] = SWITCHES


QUICK = Effort(
    (48, 40), 9, 2, 3, (0.1,), PairOptions(hold_out=0, steps=20, gaussians=800, ways=("underfit",), early=(0.5,)),
    TrainConfig(steps=2, crop=40, batch=1), 8, 0.05, 6, (64,), ("references",),
)  # fmt: skip


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the generated table; then of the skull photos where `--data` holds them."""
    effort = QUICK if given.quick else Effort()
    shipped = load_refiner(shipped_folder()).model
    yield Row("numbers learned, shipped refiner", count_parameters(shipped) / 1e6, "M", "<= 10", ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = tabletop_stage(*effort.size, effort.spacing)
        views = take_photos(stage, photo_cameras(stage, effort.photos), folder / "photos")
        options = replace(effort.pairs, seed=given.seed)
        fits = short_fits(views, options, folder / "fits")
        models = {"cross-scene": shipped} | own_models(views, options, effort, folder, given.seed)
        for kind, scene in fits.items():
            clip = judged(scene, stage, held_out_cameras(stage, effort.views))
            yield from view_rows(kind, clip, scene.references, models)
            film = judged(scene, stage, film_cameras(effort.frames, *effort.size))
            yield from film_rows(kind, film, scene.references, models)
        yield from aside_rows(fits["sparse"], stage, models, effort)
        yield from recall_rows(fits["sparse"], stage, shipped, effort)
        yield from switch_rows(shipped, fits["underfit"], stage, effort)
        yield from speed_rows(shipped, effort)
        if given.data is not None and (given.data / "skull_ccby").is_dir():
            yield from skull_rows(given.data / "skull_ccby", folder, models["cross-scene"], effort, given.seed)


def own_models(views: Views, options: PairOptions, effort: Effort, folder: Path, seed: int) -> dict[str, Refiner]:
    """The refiner and a plain network (no gate, noise or memory), learned from pairs of the scene's own photos."""
    pairs: list[Pair] = list(scene_pairs(views, options))
    told = replace(effort.train, seed=seed)
    config = RefinerConfig(width=effort.width, seed=seed)
    plain = replace(config, gate=False, noise=False, previous=False, temporal=False)
    del folder
    return {
        "own scene": train(Refiner(config), pairs, (), told).model,
        "plain network": train(Refiner(plain), pairs, (), replace(told, flicker=0.0)).model,
    }


def view_rows(kind: str, clip: Clip, photos: Clip, models: dict[str, Refiner]) -> Iterator[Row]:
    """Held-out views of one fit: quality beside the raw render and filters, and how much changed."""
    assert clip.truth is not None
    raw, raw_ssim = quality(clip.rgb, clip.truth)
    name = f"{kind}, held-out views"
    yield Row(f"{name}, raw render", raw, "dB", note=f"SSIM {raw_ssim:.4f}")
    for label, made in (("bilateral", bilateral(clip.rgb)), ("total variation", total_variation(clip.rgb))):
        found, alike = quality(made, clip.truth)
        yield Row(f"{name}, {label} - raw", found - raw, "dB", note=f"SSIM {alike - raw_ssim:+.4f}")
    for label, model in models.items():
        made = refine_clip(model, clip, photos)
        found, alike = quality(made, clip.truth)
        note = f"SSIM {alike - raw_ssim:+.4f}"
        share = changed_share((made - clip.rgb).abs().amax(-1))
        if label == "plain network":
            yield Row(f"{name}, {label} - raw", found - raw, "dB", note=note)
        elif kind == "good":
            yield at_least(f"{name}, {label} - raw", found - raw, "dB", -0.05, note=note)
            yield Row(f"{name}, {label}, pixels changed", 100 * share, "%")
        else:
            yield at_least(f"{name}, {label} - raw", found - raw, "dB", 1.0, note=note)
            yield at_least(f"{name}, {label}, pixels changed", 100 * share, "%", 10.0)
        if label == "cross-scene":
            limit = disagreement(clip.rgb, clip)
            yield at_most(
                f"{name}, {label}, one surface in two views", 255 * disagreement(made, clip), "of 255", 255 * limit
            )
            yield at_most(f"{name}, {label}, edges of depth moved", edge_shift(made, clip), "px", 0.05)


def film_rows(kind: str, film: Clip, photos: Clip, models: dict[str, Refiner]) -> Iterator[Row]:
    """A film that was held out: quality, and flicker along the rendered flow."""
    assert film.truth is not None
    raw, raw_ssim = quality(film.rgb, film.truth)
    base = 255 * flicker(film.rgb, film)
    yield Row(f"{kind}, film, raw render", raw, "dB", note=f"flicker {base:.3f} of 255")
    for label, model in models.items():
        made = refine_clip(model, film, photos)
        found, alike = quality(made, film.truth)
        note = f"SSIM {alike - raw_ssim:+.4f}"
        if label == "plain network":
            yield Row(f"{kind}, film, {label} - raw", found - raw, "dB", note=note)
            yield Row(f"{kind}, film, {label}, flicker", 255 * flicker(made, film), "of 255", baseline=base)
            continue
        goal = -0.05 if kind == "good" else 1.0
        yield at_least(f"{kind}, film, {label} - raw", found - raw, "dB", goal, note=note)
        yield at_most(f"{kind}, film, {label}, flicker", 255 * flicker(made, film), "of 255", base)


def aside_rows(scene: Scene, stage: Stage, models: dict[str, Refiner], effort: Effort) -> Iterator[Row]:
    """Films further and further off the photos' path: the drop of PSNR against the path, raw and refined."""

    def drawn(aside: float) -> Clip:
        return judged(scene, stage, film_cameras(effort.frames, *effort.size, aside=aside))

    def scores(clip: Clip) -> dict[str, float]:
        assert clip.truth is not None
        made = {label: refine_clip(models[label], clip, scene.references) for label in ("cross-scene", "own scene")}
        return {label: quality(pictures, clip.truth)[0] for label, pictures in {"raw": clip.rgb, **made}.items()}

    path = scores(drawn(0.0))
    for aside in effort.asides:
        found = scores(drawn(aside))
        drop = path["raw"] - found["raw"]
        for label in ("cross-scene", "own scene"):
            left = path["raw"] - found[label]
            yield at_most(
                f"sparse, {100 * aside:.0f} cm off the path, {label}, drop against raw on the path", left, "dB",
                0.5 * max(drop, 0.0), baseline=drop,
            )  # fmt: skip


def recall_rows(scene: Scene, stage: Stage, model: Refiner, effort: Effort) -> Iterator[Row]:
    """Look away and come back: a loop, and its last frame against its own first."""
    half = film_cameras(effort.loop // 2, stage.width, stage.height, span=2.0)
    order = [*range(len(half)), *reversed(range(len(half)))]
    cameras = Cameras(half.K[order], half.world_from_camera[order], half.width, half.height)
    film = Film(model, scene.references)
    first: Tensor | None = None
    last = torch.zeros(0)
    for frame in stream_clip(scene.gaussians, cameras, counts=scene.counts, references=scene.references):
        last = film(frame).picture
        first = last if first is None else first
    assert first is not None
    same = float(psnr(last, first).clamp(max=99))
    yield at_least(f"recall, loop of {len(order)} frames, last against first, refiner on", same, "dB", 40.0)


def switch_rows(model: Refiner, scene: Scene, stage: Stage, effort: Effort) -> Iterator[Row]:
    """The shipped refiner with one condition taken away at a time, without learning again: what it leans on."""
    clip = judged(scene, stage, film_cameras(effort.frames, *effort.size))
    assert clip.truth is not None
    whole = quality(refine_clip(model, clip, scene.references), clip.truth)[0]
    for switch in effort.switches:
        less = Refiner(replace(model.config, **{switch: False}))
        less.load_state_dict(model.state_dict())
        found = quality(refine_clip(less, clip, scene.references), clip.truth)[0]
        note = "not learned again"
        yield Row(f"underfit, film, cross-scene without {switch} - with", found - whole, "dB", note=note)


def speed_rows(model: Refiner, effort: Effort) -> Iterator[Row]:
    """Milliseconds per frame and memory of the refiner alone, warps included, by the side of a square picture."""
    from gworld.refine.sample import film_clip

    for side in effort.sides:
        frame = film_clip(torch.rand(side, side, 3, generator=torch.Generator().manual_seed(0)))
        frame = replace(frame, depth=frame.depth + 1.0, link_id=frame.link_id + 1, truth=frame.rgb)
        photos = replace(frame, rgb=0.9 * frame.rgb)[[0, 0, 0]]
        film = Film(model, photos)

        def step(film: Film = film, frame: Clip = frame) -> object:
            return film(frame)

        yield Row(
            f"{side} x {side} pixels, one frame", 1e3 * median_seconds(step, 5), "ms", note="CPU, render not in it"
        )
        yield Row(f"{side} x {side} pixels, memory", peak_growth(step) / 2**20, "MB")


def skull_rows(place: Path, folder: Path, model: Refiner, effort: Effort, seed: int) -> Iterator[Row]:
    """Real photos: a fit of eight of them, seen from others."""
    views = undistort_views(read_colmap(place), folder / "skull")
    ordered = sorted(views.views, key=lambda view: view.name)
    few = ordered[:: max(1, len(ordered) // 8)][:8]
    others = [view for view in ordered if view not in few][:: max(1, len(ordered) // 12)]
    options = replace(effort.pairs, longest=max(effort.size), gaussians=0 if effort.loop > 99 else 500, seed=seed)
    scene = fit_scene(replace(views, views=tuple(few)), options, folder / "skull-fit")
    held_out = replace(views, views=tuple(others))
    clip = look(scene, cameras_at(held_out, options.longest), true_pictures(held_out, options.longest))
    yield from view_rows("skull, 8 photos", clip, scene.references, {"cross-scene": model})


def shipped_folder() -> Path:
    """Where the refiner that comes with gworld lies; raises `InputError` where it does not."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "assets" / "refiner", package.parent / "assets" / "refiner"):
        if folder.is_dir():
            return folder
    raise InputError("this installation has no `assets/refiner`. Run the bench from a checkout.")
