"""Footage out of videos, photos and RGB-D recordings: look, choose, write, all or nothing.

The folder appears complete or not at all, and one that was made from the same inputs with the same options is used
again. Pictures become JPEG at quality 95 without colour subsampling where they come from a lossy video or photo (their
own losses are larger, and PNG would be six times the size), and PNG where the source is lossless or the picture so
small (up to 640 x 480) that its size hardly matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from gworld.capture.footage import FILE, Footage, FootageCamera, Shot, load_footage, save_footage
from gworld.capture.keyframes import (
    LOOK_SIDE,
    KeyframeOptions,
    Looks,
    choose,
    grey_of,
    look,
    nearest,
    relative_sharpness,
    sharpness_of,
)  # fmt: skip
from gworld.capture.rgbd import MILLIMETRE
from gworld.capture.sources import Picture, Source, open_source, read_pictures
from gworld.errors import InputError, UsageError
from gworld.files import atomic_folder, read_json, write_json

FACTS = "capture.json"
FORMAT = "gworld capture 1"
OWN = ("images", "masks", "depth", FILE, FACTS)
SMALL = 640 * 480
LOOKS = 3000
"""Pictures of a long video that are looked at, about; never fewer than `SLOWEST` a second."""
SLOWEST, FASTEST = 2.0, 60.0
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class CameraFacts:
    """What one input showed while its pictures were chosen.

    `cameras` are indices into `Footage.cameras` (photos of several sizes make several); `still` means that the picture
    moved by less than a tenth of its longer side in all, `path` by how much (longer sides), `parallax` is the share of
    that motion which no turn of the camera explains, None where nothing moved. `looked` pictures were judged, `sharp`
    of them sharp enough.
    """

    cameras: tuple[int, ...]
    source: str
    kind: str
    looked: int
    sharp: int
    kept: int
    seconds: float = 0.0
    still: bool = False
    path: float = 0.0
    parallax: float | None = None
    interlaced: bool = False


@dataclass(frozen=True)
class _Choice:
    """A source, what was measured of it, and which of its pictures are kept."""

    source: Source
    looks: Looks | None
    indices: tuple[int, ...]
    sharpness: dict[int, float]


def extract_footage(
    inputs: Sequence[Path], folder: Path, options: KeyframeOptions, progress: Progress | None = None
) -> Footage:
    """Take the pictures worth keeping out of `inputs`, one camera each, and write them with `footage.json`.

    Of a moving camera's video the sharpest picture of each stretch of its path is kept, of a camera at rest some spread
    over time, of photos all. Where several inputs are all videos of cameras at rest, they are taken to have started at
    one moment, and pictures of the same moments are kept of all. Times are seconds from each input's first picture.
    Raises `InputError` for inputs that cannot be used, `UsageError` when `folder` holds anything else.
    """
    if not inputs:
        raise UsageError("no footage was given; name at least one video or folder of pictures.")
    tell = progress or (lambda _stage, _share: None)
    target, key = Path(folder), _key(inputs, options, Path(folder))
    if (done := _finished(target, key)) is not None:
        tell("footage is there already", 1.0)
        return done
    _sweep(target)
    sources = [open_source(path) for path in inputs]
    choices = []
    for number, source in enumerate(sources):
        choices.append(_choose(source, options, len(sources) > 1, _part(tell, number, len(sources), 0.0, 0.6)))
    choices = _same_moments(choices, options)
    with atomic_folder(target, own=OWN, overwrite=True) as temporary:
        footage, facts = _write(choices, temporary, options, tell)
        save_footage(footage)
        write_json(temporary / FACTS, {"format": FORMAT, "key": key, "facts": [asdict(fact) for fact in facts]})
    tell("footage written", 1.0)
    return load_footage(target)


def load_facts(folder: str | Path) -> tuple[CameraFacts, ...]:
    """What `extract_footage` noted of each input; raises `InputError` where it is missing or damaged."""
    file = Path(folder) / FACTS
    data = read_json(file)
    known = {field.name for field in fields(CameraFacts)}
    try:
        if data["format"] != FORMAT or any(set(entry) - known for entry in data["facts"]):
            raise ValueError("another format")
        return tuple(CameraFacts(**{**entry, "cameras": tuple(entry["cameras"])}) for entry in data["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"`{file}` is damaged ({error}). Capture the footage again.") from error


def _key(inputs: Sequence[Path], options: KeyframeOptions, folder: Path) -> str:
    """A fingerprint of what the footage is made from: names, sizes, times of change, options; `folder` is left out."""
    entries: list[Any] = [FORMAT, asdict(options)]
    own = folder.resolve()
    for given in inputs:
        path = Path(given).resolve()
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if own not in file.parents and not file.name.startswith("."):
                with contextlib.suppress(OSError):
                    state = file.stat()
                    whole = () if file.is_dir() else (state.st_size, state.st_mtime_ns)
                    entries.append([str(file), *whole])
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()


def _finished(folder: Path, key: str) -> Footage | None:
    """The footage in `folder` if it is complete and was made from the same."""
    try:
        if not (folder / FACTS).is_file() or read_json(folder / FACTS).get("key") != key:
            return None
        footage = load_footage(folder)
        load_facts(folder)
    except (InputError, AttributeError):
        return None
    return footage if all(shot.image.is_file() for shot in footage.shots) else None


def _sweep(folder: Path) -> None:
    """Remove what killed attempts at this folder left beside it."""
    for entry in folder.parent.glob(f".{folder.name}.*.tmp") if folder.parent.is_dir() else ():
        if re.fullmatch(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.tmp", entry.name):
            shutil.rmtree(entry, ignore_errors=True)


def _part(tell: Progress, number: int, count: int, start: float, end: float) -> Progress:
    """Progress of one of `count` inputs within the stretch from `start` to `end` of the whole."""
    return lambda stage, share: tell(stage, start + (end - start) * (number + min(1.0, share)) / count)


def _choose(source: Source, options: KeyframeOptions, several: bool, tell: Progress) -> _Choice:
    """Look at a source and decide which pictures to keep; raises `InputError` when too few are sharp."""
    if source.kind == "photos":
        return _Choice(source, None, tuple(range(0, source.count, max(1, options.every))), {})
    name, looks = source.path.name, look(_looked_at(source, options, tell))
    chosen = choose(looks, options)
    relative = relative_sharpness(looks)
    sharp = int(np.count_nonzero(relative >= options.sharpness))
    if looks.still:
        tell(f"{name}: the camera stands still, {len(chosen)} pictures kept", 1.0)
    elif len(chosen) < options.least and not several:
        raise InputError(
            f"`{source.path}` has {len(chosen)} sharp frames along its way ({sharp} of {len(looks.index)} are sharp); "
            f"at least {options.least} are needed. Film longer and slower, or lower `--capture.sharpness` (now "
            f"{options.sharpness:g}), `--capture.spacing` (now {options.spacing:g}) or `--capture.least`."
        )
    indices = tuple(int(index) for index in looks.index[chosen])
    return _Choice(source, looks, indices, dict(zip(looks.index.tolist(), looks.sharpness.tolist(), strict=True)))


def _looked_at(
    source: Source, options: KeyframeOptions, tell: Progress
) -> Iterator[tuple[int, float | None, np.ndarray]]:
    rate = min(FASTEST, max(SLOWEST, LOOKS / source.seconds)) if source.seconds > 0 else FASTEST
    every = max(1, options.every)
    for picture in read_pictures(source, max_side=LOOK_SIDE, rate=rate, every=every, depth=False):
        share = (picture.time or 0.0) / source.seconds if source.seconds else picture.index / max(1, source.count)
        tell(f"looking at {source.path.name}", share)
        yield picture.index, picture.time, picture.pixels


def _same_moments(choices: list[_Choice], options: KeyframeOptions) -> list[_Choice]:
    """Where all of several cameras are videos at rest, the same instants of all of them."""
    looks = [choice.looks for choice in choices]
    if len(choices) < 2 or not all(one is not None and one.still and len(one.time) > 1 for one in looks):
        return choices
    known = [one for one in looks if one is not None]
    start, end = max(float(one.time[0]) for one in known), min(float(one.time[-1]) for one in known)
    instants = np.linspace(start, end, max(1, options.still))
    return [
        replace(choice, indices=tuple(int(index) for index in one.index[nearest(one.time, instants)]))
        for choice, one in zip(choices, known, strict=True)
    ]


def _write(
    choices: list[_Choice], folder: Path, options: KeyframeOptions, tell: Progress
) -> tuple[Footage, list[CameraFacts]]:
    """Write the chosen pictures of all sources; depth of differing units is brought to millimetres."""
    scales = {choice.source.depth_scale for choice in choices if choice.source.depth_scale}
    scale = scales.pop() if len(scales) == 1 else MILLIMETRE
    names = _camera_names([choice.source.path for choice in choices])
    cameras: list[FootageCamera] = []
    shots: list[Shot] = []
    facts: list[CameraFacts] = []
    for number, (choice, name) in enumerate(zip(choices, names, strict=True)):
        before, part = len(shots), _part(tell, number, len(choices), 0.6, 1.0)
        own: dict[tuple[int, int, float, str], int] = {}
        shot_names = _shot_names(choice, name if len(choices) > 1 else "")
        for picture in _kept(choice, options):
            source = choice.source
            kind = (*picture.pixels.shape[1::-1], *_lens(source, picture))
            if kind not in own:
                own[kind] = len(cameras)
                suffix = f"-{len(own)}" if len(own) > 1 else ""
                cameras.append(_camera(source, name + suffix, kind))
            shots.append(_write_shot(picture, shot_names[picture.index], own[kind], folder, source, scale))
            sharp = choice.sharpness.get(picture.index)
            sharp = sharpness_of(grey_of(picture.pixels, LOOK_SIDE)) if sharp is None else sharp
            shots[-1] = replace(shots[-1], sharpness=sharp)
            part(f"writing {source.path.name}", (len(shots) - before) / max(1, len(choice.indices)))
        if len(shots) == before:
            raise InputError(f"`{choice.source.path}` gave no picture the second time it was read. Check the disk.")
        facts.append(_facts(choice, tuple(own.values()), len(shots) - before, options))
    return Footage(folder, tuple(cameras), tuple(shots), scale), facts


def _kept(choice: _Choice, options: KeyframeOptions) -> Iterator[Picture]:
    return read_pictures(choice.source, max_side=options.max_side or None, indices=choice.indices)


def _lens(source: Source, picture: Picture) -> tuple[float, str]:
    """What tells photos of one size apart: their focal length at full size, and the camera's name."""
    if source.kind != "photos":
        return 0.0, ""
    header = source.headers[picture.index]
    return round(header.focal, 1), header.model


def _camera(source: Source, name: str, kind: tuple[int, int, float, str]) -> FootageCamera:
    width, height, focal, _ = kind
    K: tuple[float, ...] = ()
    if source.K:
        x, y = width / source.width, height / source.height
        K = (source.K[0] * x, source.K[1] * y, source.K[2] * x, source.K[3] * y)
    elif focal:
        first = next(header for header in source.headers if round(header.focal, 1) == focal)
        scaled = focal * max(width, height) / max(first.width, first.height)
        K = (scaled, scaled, width / 2, height / 2)
    photos = source.kind == "photos"
    return FootageCamera(name, width, height, str(source.path.resolve()), K, fps=source.fps, photos=photos)


def _write_shot(picture: Picture, name: str, camera: int, folder: Path, source: Source, scale: float) -> Shot:
    height, width = picture.pixels.shape[:2]
    lossless = source.lossless or width * height <= SMALL
    image = folder / "images" / f"{name}.{'png' if lossless else 'jpg'}"
    _save(picture.pixels, image)
    mask = depth = None
    if picture.mask is not None:
        _save(picture.mask, mask := folder / "masks" / f"{name}.png")
    if picture.depth is not None:
        values = picture.depth
        if source.depth_scale != scale:
            metres = np.rint(values * (source.depth_scale / scale))
            values = np.where(metres > 65535, 0, metres).astype(np.uint16)  # farther than it can say: unknown
        _save(values, depth := folder / "depth" / f"{name}.png")
    return Shot(name, camera, image, picture.index, picture.time, mask, depth)


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    options: dict[str, Any] = {"compress_level": 4} if path.suffix == ".png" else {"quality": 95, "subsampling": 0}
    Image.fromarray(pixels).save(path, **options)


def _camera_names(paths: Sequence[Path]) -> list[str]:
    """A short unique name for each input, from its own."""
    names: list[str] = []
    for path in paths:
        # Without hyphens: the first one in a picture's name ends its camera's.
        base = _plain(path.resolve().stem).replace("-", "_") or "camera"
        number, name = 2, base
        while name.lower() in (other.lower() for other in names):
            number, name = number + 1, f"{base}_{number}"
        names.append(name)
    return names


def _shot_names(choice: _Choice, prefix: str) -> dict[int, str]:
    """Names by picture number: a photo's own where all are plain and differ, so that what belongs to it is found."""
    source, head = choice.source, f"{prefix}-" if prefix else ""
    if source.kind == "photos":
        stems = [file.stem for file in source.files]
        if len({stem.lower() for stem in stems}) == len(stems) and all(_plain(stem) == stem for stem in stems):
            return {index: head + stems[index] for index in choice.indices}
    return {index: f"{head}{index:07d}" for index in choice.indices}


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:80].strip(".")


def _facts(choice: _Choice, cameras: tuple[int, ...], kept: int, options: KeyframeOptions) -> CameraFacts:
    source, looks = choice.source, choice.looks
    basic = CameraFacts(
        cameras, str(source.path.resolve()), source.kind, kept, kept, kept, interlaced=source.interlaced
    )
    if looks is None:
        return basic
    return replace(
        basic,
        looked=len(looks.index),
        sharp=int(np.count_nonzero(relative_sharpness(looks) >= options.sharpness)),
        seconds=float(looks.time[-1]) if len(looks.time) else 0.0,
        still=looks.still,
        path=round(float(looks.path.max()), 4),
        parallax=round(looks.parallax, 4) if np.isfinite(looks.parallax) else None,
    )
