"""Refining: what it gains on views that fall short, what it costs where all is well, beside filters and plain networks.

The scene that is judged by is the demo's tabletop. *Cross-scene* is the refiner that comes with gworld, which learned
from other rooms; *own scene* one that learned from pairs of this scene's own photos alone; *tuned* the first gone on
with the second's pairs. Held-out views and the film are in no fit, no pair and no reference of any.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gworld.bench.catalogue import BenchInput
from gworld.bench.refine_measures import (
    bilateral,
    disagreement,
    edge_shift,
    flicker,
    quality,
    quality_in_light,
    total_variation,
)
from gworld.bench.refine_real import Judged, camera_views, skull_views
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
from gworld.bench.track_real import HOME
from gworld.data.pairset import Pair
from gworld.files import need_asset
from gworld.reconstruct.pairs import PairOptions, Scene, fit_scene, scene_pairs
from gworld.reconstruct.rounds import RoundOptions, write_back
from gworld.refine.network import Refiner, RefinerConfig, count_parameters
from gworld.refine.sample import Film, changed_share, refine_clip, refine_views
from gworld.refine.saved import load_refiner
from gworld.refine.several import drawn_by, settle
from gworld.refine.train import TrainConfig, train
from gworld.render.conditions import stream_clip
from gworld.render.metrics import psnr
from gworld.scene.cameras import Cameras
from gworld.scene.clip import Clip
from gworld.scene.views import Views

SWITCHES = ("references", "previous", "temporal", "depth", "points", "links", "flow", "confidence", "noise", "gate")
PAIRS = PairOptions(hold_out=0, keep=(4,), early=(0.1,), ways=("sparse", "underfit"))
LEARNING = TrainConfig(steps=250)
TUNING = TrainConfig(steps=40, rate=4e-4, average=0.97)


@dataclass(frozen=True)
class Effort:
    """How much the bench does."""

    size: tuple[int, int] = (160, 120)
    photos: int = 24
    views: int = 8
    frames: int = 12
    asides: tuple[float, ...] = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5)
    pairs: PairOptions = PAIRS
    train: TrainConfig = LEARNING
    tune: TrainConfig = TUNING
    width: int = 24
    spacing: float = 0.012
    fits: int = 3
    loop: int = 600
    sides: tuple[int, ...] = (128, 192, 256)
    switches: tuple[str, ...] = SWITCHES


QUICK = Effort(
    (48, 40), 9, 2, 3, (0.1,), PairOptions(hold_out=0, steps=20, gaussians=800, ways=("underfit",), early=(0.5,)),
    TrainConfig(steps=2, crop=40, batch=1), TrainConfig(steps=1, crop=40, batch=1), 8, 0.05, 2, 6, (64,),
    ("references",),
)  # fmt: skip


def rows(given: BenchInput) -> Iterator[Row]:
    """Rows of the generated table; then of the skull photos where `--data` holds them."""
    effort = QUICK if given.quick else Effort()
    shipped = load_refiner(need_asset("refiner")).model
    yield Row("numbers learned, shipped refiner", count_parameters(shipped) / 1e6, "M", "<= 10", ok=True)
    yield from speed_rows(shipped, effort)  # first: what a process has held before hides what a frame takes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage = tabletop_stage(*effort.size, effort.spacing)
        views = take_photos(stage, photo_cameras(stage, effort.photos), folder / "photos")
        options = replace(effort.pairs, seed=given.seed)
        fits = short_fits(views, options, folder / "fits")
        pairs = list(scene_pairs(views, options))
        models = {"cross-scene": shipped} | own_models(shipped, pairs, effort, given.seed)
        for kind, scene in fits.items():
            clip = judged(scene, stage, held_out_cameras(stage, effort.views))
            yield from view_rows(kind, clip, scene.references, models)
            film = judged(scene, stage, film_cameras(effort.frames, *effort.size))
            yield from film_rows(kind, film, scene.references, models)
        sparse = further_fits(fits["sparse"], views, options, effort, folder)
        yield from several_rows(sparse, stage, shipped, effort)
        yield from written_rows(sparse[0], views, stage, shipped, effort, options, folder)
        yield from aside_rows(sparse, stage, models, effort)
        yield from recall_rows(fits["sparse"], stage, shipped, effort)
        yield from switch_rows(models, pairs, fits["underfit"], stage, effort)
        if given.data is not None:
            yield from real_rows(given.data, folder, shipped, effort, given.seed)


def sparse_photos(views: Views) -> Views:
    """The photos that the sparse fit of `short_fits` has."""
    return replace(views, views=views.views[:: max(1, len(views) // 8)])


def further_fits(first: Scene, views: Views, options: PairOptions, effort: Effort, folder: Path) -> list[Scene]:
    """The sparse fit and others of the same photos by further seeds."""
    more = range(1, effort.fits)
    few = sparse_photos(views)
    return [
        first,
        *(fit_scene(few, replace(options, seed=options.seed + k), folder / f"more-{k}") for k in more),
    ]


def several_rows(scenes: list[Scene], stage: Stage, model: Refiner, effort: Effort) -> Iterator[Row]:
    """Several fits of the same few photos, each refined with the help of the others: mean over which is the first."""
    for kind, cameras in (
        ("held-out views", held_out_cameras(stage, effort.views)),
        ("film", film_cameras(effort.frames, *effort.size)),
    ):
        found: dict[str, list[tuple[float, float]]] = {"raw": [], "median": [], "refined": []}
        moving, change, base, off = [], [], [], []
        for row, scene in enumerate(scenes):
            clip = judged(scene, stage, cameras)
            others = [other.gaussians for k, other in enumerate(scenes) if k != row]
            median = torch.cat([settle(clip[t], drawn_by(others, clip[t])).rgb for t in range(len(clip))])
            refine = refine_clip if kind == "film" else refine_views
            made = refine(model, clip, scene.references, others=others)
            assert clip.truth is not None
            for name, pictures in (("raw", clip.rgb), ("median", median), ("refined", made)):
                found[name].append(quality(pictures, clip.truth))
            change.append(100 * changed_share((made - clip.rgb).abs().amax(-1)))
            measure = flicker if kind == "film" else disagreement
            moving.append(255 * measure(made, clip))
            base.append(255 * measure(clip.rgb, clip))
            off.append(edge_shift(made, clip))
        name = f"sparse, {kind}, {len(scenes)} fits"
        raw = found["raw"]
        yield Row(f"{name}, raw renders", _mean([each[0] for each in raw]), "dB", note=_spread(raw))
        gains = {key: [(a[0] - b[0], a[1] - b[1]) for a, b in zip(found[key], raw, strict=True)] for key in found}
        median_gain, gain = (_mean([each[0] for each in gains[key]]) for key in ("median", "refined"))
        yield Row(f"{name}, median where in doubt - raw", median_gain, "dB", note=_spread(gains["median"]))
        yield at_least(f"{name}, cross-scene on it - raw", gain, "dB", 1.0, note=_spread(gains["refined"]))
        yield at_least(f"{name}, cross-scene on it, pixels changed", _mean(change), "%", 10.0)
        words = "flicker" if kind == "film" else "one surface in two views"
        yield at_most(f"{name}, cross-scene on it, {words}", _mean(moving), "of 255", _mean(base))
        yield at_most(f"{name}, cross-scene on it, edges of depth moved", _mean(off), "px", 0.05)


def written_rows(
    scene: Scene, views: Views, stage: Stage, model: Refiner, effort: Effort, options: PairOptions, folder: Path
) -> Iterator[Row]:
    """Refined views written back into the sparse fit: the new world as it is drawn, and refined again."""

    def refine(clip: Clip, photos: Clip) -> Tensor:
        return refine_views(model, clip, photos)

    told = RoundOptions(fits=effort.fits)
    *_, after = write_back(scene, sparse_photos(views), refine, folder / "rounds", options, told)
    for kind, cameras in (
        ("held-out views", held_out_cameras(stage, effort.views)),
        ("film", film_cameras(effort.frames, *effort.size)),
    ):
        before, new = judged(scene, stage, cameras), judged(after, stage, cameras)
        assert before.truth is not None
        raw, raw_ssim = quality(before.rgb, before.truth)
        again = (refine_clip if kind == "film" else refine_views)(model, new, after.references)
        for name, made in (("written back", new.rgb), ("written back and refined", again)):
            found, alike = quality(made, before.truth)
            note = f"SSIM {alike - raw_ssim:+.4f}"
            yield at_least(f"sparse, {kind}, {name} - raw", found - raw, "dB", 1.0, note=note)
            if kind == "film":
                base = 255 * flicker(before.rgb, before)
                yield at_most(f"sparse, {kind}, {name}, flicker", 255 * flicker(made, new), "of 255", base)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(found: list[tuple[float, float]]) -> str:
    """SSIM's mean, and the least and most dB."""
    each = [pair[0] for pair in found]
    return f"{min(each):.2f} to {max(each):.2f} dB, SSIM {_mean([pair[1] for pair in found]):+.4f}"


def own_models(shipped: Refiner, pairs: list[Pair], effort: Effort, seed: int) -> dict[str, Refiner]:
    """Learned from pairs of the scene's own photos: a refiner, a plain network (no gate, noise or memory), and the
    shipped refiner tuned to them."""
    told = replace(effort.train, seed=seed)
    config = RefinerConfig(width=effort.width, seed=seed)
    plain = replace(config, gate=False, noise=False, previous=False, temporal=False, hold=0.0)
    return {
        "own scene": train(Refiner(config), pairs, (), told).model,
        "tuned": tuned(shipped, pairs, replace(effort.tune, seed=seed)),
        "plain network": train(Refiner(plain), pairs, (), replace(told, flicker=0.0)).model,
    }


def tuned(model: Refiner, pairs: list[Pair], told: TrainConfig, **switches: bool) -> Refiner:
    """A copy of a refiner that goes on learning, with conditions taken away where switches say so."""
    found = Refiner(replace(model.config, **switches))
    found.load_state_dict(model.state_dict())
    return train(found, pairs, (), told).model


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
        made = refine_views(model, clip, photos)
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
            limit, true = (255 * disagreement(pictures, clip) for pictures in (clip.rgb, clip.truth))
            found, note = 255 * disagreement(made, clip), f"the truth itself {true:.3f}"
            yield at_most(f"{name}, {label}, one surface in two views", found, "of 255", limit, note=note)
            yield at_most(f"{name}, {label}, edges of depth moved", edge_shift(made, clip), "px", 0.05)


def film_rows(kind: str, film: Clip, photos: Clip, models: dict[str, Refiner]) -> Iterator[Row]:
    """A film that was held out: quality, and flicker along the rendered flow."""
    assert film.truth is not None
    raw, raw_ssim = quality(film.rgb, film.truth)
    base = 255 * flicker(film.rgb, film)
    note = f"flicker {base:.3f} of 255, the truth's {255 * flicker(film.truth, film):.3f}"
    yield Row(f"{kind}, film, raw render", raw, "dB", note=note)
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


def aside_rows(scenes: list[Scene], stage: Stage, models: dict[str, Refiner], effort: Effort) -> Iterator[Row]:
    """Films further and further off the photos' path: the drop of PSNR against the path, raw and refined."""
    scene, others = scenes[0], [other.gaussians for other in scenes[1:]]
    cross = models["cross-scene"]

    def scores(aside: float) -> dict[str, float]:
        clip = judged(scene, stage, film_cameras(effort.frames, *effort.size, aside=aside))
        assert clip.truth is not None
        made = {
            "raw": clip.rgb,
            "cross-scene": refine_clip(cross, clip, scene.references),
            "own scene": refine_clip(models["own scene"], clip, scene.references),
            f"cross-scene on {len(scenes)} fits": refine_clip(cross, clip, scene.references, others=others),
        }
        return {label: quality(pictures, clip.truth)[0] for label, pictures in made.items()}

    path = scores(0.0)["raw"]
    for aside in effort.asides:
        found = scores(aside)
        drop = path - found.pop("raw")
        for label, score in found.items():
            yield at_most(
                f"sparse, {100 * aside:.0f} cm off the path, {label}, drop against raw on the path", path - score, "dB",
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


def switch_rows(
    models: dict[str, Refiner], pairs: list[Pair], scene: Scene, stage: Stage, effort: Effort
) -> Iterator[Row]:
    """The shipped refiner tuned to the scene with one condition taken away at a time, beside the same with all."""
    clip = judged(scene, stage, film_cameras(effort.frames, *effort.size))
    assert clip.truth is not None
    whole = quality(refine_clip(models["tuned"], clip, scene.references), clip.truth)
    base = flicker(refine_clip(models["tuned"], clip, scene.references), clip)
    for switch in effort.switches:
        less = tuned(models["cross-scene"], pairs, effort.tune, **{switch: False})
        made = refine_clip(less, clip, scene.references)
        found = quality(made, clip.truth)
        off = 255 * (flicker(made, clip) - base)
        note = f"SSIM {found[1] - whole[1]:+.4f}, flicker {off:+.3f}"
        yield Row(f"underfit, film, tuned without {switch} - with", found[0] - whole[0], "dB", note=note)


def speed_rows(model: Refiner, effort: Effort) -> Iterator[Row]:
    """Milliseconds per frame and memory of the refiner alone, warps included, by the side of a square picture."""
    from gworld.refine.sample import film_clip

    for side in effort.sides:
        frame = film_clip(torch.rand(side, side, 3, generator=torch.Generator().manual_seed(0)))
        frame = replace(frame, depth=frame.depth + 1.0, link_id=frame.link_id + 1, truth=frame.rgb)
        photos = replace(frame, rgb=0.9 * frame.rgb)[[0, 0, 0]]
        gc.collect()
        grown = peak_growth(lambda frame=frame, photos=photos: Film(model, photos)(frame))
        film = Film(model, photos)

        def step(film: Film = film, frame: Clip = frame) -> object:
            return film(frame)

        yield Row(
            f"{side} x {side} pixels, one frame", 1e3 * median_seconds(step, 5), "ms", note="CPU, render not in it"
        )
        yield Row(f"{side} x {side} pixels, memory", grown / 2**20, "MB")


def real_rows(data: Path, folder: Path, model: Refiner, effort: Effort, seed: int) -> Iterator[Row]:
    """Real pictures, before and after, with one fit and with several."""
    options = replace(effort.pairs, longest=max(effort.size), gaussians=0 if effort.loop > 99 else 500, seed=seed)
    found: list[Judged] = []
    if (data / "skull_ccby").is_dir():
        found += skull_views(data / "skull_ccby", folder, options, effort.fits)
    if (data / HOME).is_dir():
        found += camera_views(data, folder, options, effort.fits)
    for name, clip, scenes in found:
        yield from view_rows(name, clip, scenes[0].references, {"cross-scene": model})
        yield from light_rows(name, clip, scenes, model)


def light_rows(name: str, clip: Clip, scenes: list[Scene], model: Refiner) -> Iterator[Row]:
    """Gains with one fit and with several, as they are and with each view's exposure fitted."""
    assert clip.truth is not None
    photos, others = scenes[0].references, [scene.gaussians for scene in scenes[1:]]
    made = {
        "cross-scene": refine_views(model, clip, photos),
        f"median of {len(scenes)} fits": torch.cat(
            [settle(clip[t], drawn_by(others, clip[t])).rgb for t in range(len(clip))]
        ),
        f"cross-scene on {len(scenes)} fits": refine_views(model, clip, photos, others=others),
    }
    for way, score in (("", quality), (", exposure fitted", quality_in_light)):
        raw = score(clip.rgb, clip.truth)
        yield Row(f"{name}, held-out views{way}, raw render", raw[0], "dB", note=f"SSIM {raw[1]:.4f}")
        for label, pictures in made.items():
            found = score(pictures, clip.truth)
            note = f"SSIM {found[1] - raw[1]:+.4f}"
            yield at_least(f"{name}, held-out views{way}, {label} - raw", found[0] - raw[0], "dB", 1.0, note=note)
