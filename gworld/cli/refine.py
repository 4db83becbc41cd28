"""`gworld refine`: rendered film into footage, where the world is unsure of itself, and nowhere else.

With `--rounds`, refined views are written back into the world instead (see refine_world.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from gworld.cli.options import print_json, say
from gworld.errors import InputError, UsageError
from gworld.files import refuse_existing
from gworld.render.names import BackendName

if TYPE_CHECKING:
    from torch import Tensor

    from gworld.cli.refine_film import Source
    from gworld.refine.sample import Refined
    from gworld.scene.clip import Clip


@dataclass(frozen=True)
class Options:
    """What to refine, with what, and into what."""

    source: Annotated[Path, tyro.conf.Positional]
    """A rollout (.parquet, with --world) that is drawn and refined, a rendered video (.mp4), or, with --rounds, a
    world."""
    world: Path | None = None
    """The world the rollout is of: it tells depth, links, flow, and what was seen."""
    refiner: Path | None = None
    """A trained refiner: a run or a checkpoint; else the world's own, else the one shipped for all scenes."""
    backbone: Path | None = None
    """A local diffusers folder (Stable Diffusion with or without ControlNet, Stable Video Diffusion) instead."""
    lora: Path | None = None
    """Adapters that were learned on that backbone."""
    out: Path = Path("refined.mp4")
    """The refined video; with --rounds, the folder of the new world."""
    changes: Path | None = None
    """A second video: black where nothing changed, white where a channel changed by a fifth or more."""
    beside: bool = False
    """Show the render to the left of the refined picture."""
    also: tuple[Path, ...] = ()
    """Further worlds fitted to the same photos (`gworld reconstruct --fit.seed 1`): their median is shown where the
    world is in doubt, and it is trusted where they agree."""
    camera: str = ""
    """The world's camera by name (the first when empty), or `orbit`, or a camera-path JSON."""
    width: int = 160
    """Width of the picture in pixels."""
    fps: float = 30.0
    """Frames per second of a plain video; a rollout has its own."""
    trust: float = 1.0
    """The most confidence that anything gets; below 1 where a world does not know what it does not know. A plain video
    has this confidence everywhere, 0 when not given."""
    measured: bool = False
    """Refine each link as strongly as helps the photos: every one is refined as if it had never been taken, and what
    does not bring it nearer to the truth is left out. Needs a refiner with photos of the world."""
    seed: int = 0
    """Draws the noise."""
    background: tuple[float, float, float] | None = None
    """Background colour, 0 to 1; the world's own when not given."""
    backend: BackendName = "auto"
    """Which renderer draws."""
    rounds: int = 0
    """Write refined views between the photos of --data back into a world, so many times: a new world is made."""
    data: Path | None = None
    """`--rounds`: the photos the world was reconstructed from, posed in its frame (transforms.json or COLMAP)."""
    fits: int = 3
    """`--rounds`: fits whose median is refined and written back in each round."""
    fit_steps: int = 1500
    """`--rounds`: steps of each fit."""
    longest: int = 160
    """`--rounds`: longest side of the pictures, in pixels."""
    hold_out: int = 8
    """`--rounds`: every this many-th photo is set aside and judges."""
    overwrite: bool = False
    """Replace what exists."""
    json: bool = False
    """Print the result as one JSON object on stdout."""


def run(options: Options) -> None:
    """Refine.

    Raises `UsageError` for outputs that exist and requests that contradict themselves, `InputError` for what cannot be
    read.
    """
    if options.rounds or options.data is not None:
        _check_rounds(options)
        from gworld.cli.refine_world import refine_world

        refine_world(options)
        return
    _check(options)
    from gworld.cli.refine_film import open_source

    started = time.monotonic()
    source = open_source(options)
    count, changed = _write(options, source)
    facts = {
        "out": str(options.out),
        "frames": count,
        "changed": changed / count,
        "refiner": str(options.backbone or source.place),
        "photos": 0 if source.photos is None else len(source.photos),
        "strengths": {str(link): strength for link, strength in source.strengths.items()},
        "seconds": round(time.monotonic() - started, 3),
    }
    if options.json:
        print_json(facts)
        return
    for note in source.notes:
        say(note)
    say(f"refined {count} frames to {options.out}; {100 * changed / count:.1f} % of pixels changed visibly")
    say(f"by {facts['refiner']}, {facts['photos']} photos to refer to, {facts['seconds']:.1f} s")
    say("next: watch it, or see where it changed what with `--changes changes.mp4`")


def _write(options: Options, source: Source) -> tuple[int, float]:
    """Refine all frames into the videos; how many there were, and the sum of their changed shares."""
    import contextlib

    from gworld.cli.refine_film import backbone_frames
    from gworld.refine.sample import Film, changed_share
    from gworld.render.video import open_video
    from gworld.runlog import track

    trust = options.trust if options.world is not None or options.trust < 1 else 0.0
    film = Film(
        source.refiner.model,
        source.photos,
        seed=options.seed,
        trust=trust,
        strengths=source.strengths,
        others=source.others,
        drawing=source.drawing,
    )
    count, changed = 0, 0.0
    with contextlib.ExitStack() as stack:
        add = stack.enter_context(open_video(options.out, source.fps))
        told = None if options.changes is None else stack.enter_context(open_video(options.changes, source.fps))
        frames: Iterator[tuple[Clip, Refined]] = ((frame, film(frame)) for frame in source.frames)
        if options.backbone is not None:
            frames = backbone_frames(source.frames, options.backbone, options.lora, trust, options.seed)
        for frame, refined in track(frames, "frames", total=source.count):
            add(_shown(frame, refined, options.beside))
            if told is not None:
                told(change_map(refined.change))
            count, changed = count + 1, changed + changed_share(refined.change)
    if count == 0:
        raise InputError(f"`{options.source}` has no frames.")
    return count, changed


def change_map(change: Tensor) -> Tensor:
    """A picture [H,W,3] of what changed: 0 nowhere, 1 where a channel changed by a fifth or more."""
    return (5 * change).clamp(0, 1)[..., None].expand(-1, -1, 3)


def _shown(frame: Clip, refined: Refined, beside: bool) -> Tensor:
    import torch

    return torch.cat([frame.rgb[0], refined.picture], dim=1) if beside else refined.picture


def _check(options: Options) -> None:
    suffix = options.source.suffix.lower()
    if suffix not in (".mp4", ".parquet"):
        raise UsageError(f"`{options.source}` is neither a rollout (.parquet) nor a video (.mp4).")
    if options.lora is not None and options.backbone is None:
        raise UsageError("`--lora` belongs to a `--backbone`; give that too.")
    if options.measured and (options.world is None or options.backbone is not None):
        raise UsageError("`--measured` needs the photos of a `--world`, for the refiner alone, not for a backbone.")
    if options.also and (options.world is None or options.backbone is not None):
        raise UsageError("`--also` names worlds beside `--world`, for the refiner alone, not for a backbone.")
    if suffix == ".parquet" and options.world is None:
        raise UsageError("a rollout needs `--world`, which it is drawn in.")
    if suffix == ".mp4" and options.world is not None:
        raise UsageError("a video has no poses to draw the world at; give the rollout beside it (.parquet).")
    if not 0 <= options.trust <= 1 or not 16 <= options.width <= 4096:
        raise UsageError(f"trust {options.trust} and width {options.width} were asked for; 0 to 1 and 16 to 4096 fit.")
    for path in (options.out, options.changes):
        if path is not None:
            if path.suffix.lower() != ".mp4":
                raise UsageError(f"`{path}` is no .mp4 file.")
            refuse_existing(path, overwrite=options.overwrite)


def _check_rounds(options: Options) -> None:
    if options.rounds < 1 or options.data is None:
        raise UsageError("`--rounds N` and `--data PHOTOS` belong together; give both.")
    if options.out.suffix.lower() == ".mp4" or not options.source.is_dir():
        raise UsageError("`--rounds` makes a new world of a world: give the world's folder, and a folder as `--out`.")
    if options.hold_out < 2 or options.fits < 1 or options.fit_steps < 1 or not 16 <= options.longest <= 16_384:
        raise UsageError("`--hold-out` is at least 2, `--fits` and `--fit-steps` 1, `--longest` 16 to 16384.")
    refuse_existing(options.out, overwrite=options.overwrite)


def even_size(frame: Tensor) -> Tensor:
    """A picture cut to even sides, as video has them."""
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def video_clips(path: Path, trust: float) -> Iterator[Clip]:
    """A plain video as frames of which no world is known."""
    import torch

    from gworld.refine.sample import film_clip
    from gworld.render.video import read_video

    for picture in read_video(path):
        yield replace(film_clip(even_size(torch.from_numpy(picture).float() / 255), trust))
