"""Masks of the static scene: given as PNGs, as silhouettes of links, or found where nothing is given.

Every mask is an 8-bit PNG of its picture's size in the footage's folder `masks/`, 255 = static scene to use, 0 = to
ignore; masks from several sources are combined, so that what any of them ignores is ignored. What was found stands in
`masks.json` beside `footage.json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from PIL import Image
from torch import Tensor

from gworld.capture.footage import Footage, Shot, save_footage, shots_of
from gworld.capture.motion import Movers, find_movers, load_small
from gworld.capture.options import MaskOptions
from gworld.capture.regions import grow
from gworld.errors import InputError, UsageError
from gworld.files import atomic_write, existing_file, read_json, safe_join, write_json
from gworld.render.select import render
from gworld.scene.cameras import Cameras
from gworld.scene.world import World

Progress = Callable[[str, float], None]
FILE = "masks.json"
FORMAT = "gworld masks 1"
ENDINGS = (".png", ".jpg.png", ".png.png", ".jpeg.png", ".JPG.png", ".PNG.png", ".mask.png", "_mask.png")
"""How the mask of `x.jpg` may be called, after its stem: our way, then COLMAP's, nerfstudio's and others'."""


@dataclass(frozen=True)
class MaskFindings:
    """What was found for one camera: how it moved (`still`, `moving`, or `given` where masks were there), the share
    of its pictures that the dominant motion explains (1 where masks were given), the shares masked in all and as
    riding along with it, a focal length in pixels guessed on the way (0 if none), whether the masks are to be
    trusted: if not, movers may fill most of the picture and nothing was masked as moving; and the digest of the mask
    files as they were written, by which masks that were found are known from those that were given or edited."""

    camera: str
    kind: str
    explained: float
    masked: float
    mounted: float = 0.0
    focal: float = 0.0
    trusted: bool = True
    digest: str = ""


def mask_footage(footage: Footage, options: MaskOptions, progress: Progress | None = None) -> Footage:
    """Write masks by `options` into the footage's folder and return the footage with them; `masks.json` says what
    was found (`read_findings`).

    Raises `UsageError` for bad options, `InputError` for masks that are missing for a whole folder, unreadable or of
    another size than their picture.
    """
    if not 0 <= options.margin <= 0.2 or not 64 <= options.side <= 2048:
        raise UsageError(
            f"a mask margin of {options.margin} and a side of {options.side} were asked for; a margin of 0 to 0.2 and "
            "a side of 64 to 2048 pixels are needed."
        )
    if options.source == "none":
        return footage
    if options.source == "auto":
        return _find(footage, options, progress)
    return _given(footage, Path(options.source), options.keep, progress)


def read_findings(footage: Footage) -> tuple[MaskFindings, ...]:
    """What `mask_footage` found, one per camera; empty where it never ran. Raises `InputError` for a damaged file."""
    path = footage.folder / FILE
    if not path.exists():
        return ()
    data = read_json(path)
    try:
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}")
        names = {field.name for field in fields(MaskFindings)}
        return tuple(MaskFindings(**{k: v for k, v in entry.items() if k in names}) for entry in data["cameras"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"`{path}` is damaged ({error}). Find the masks again.") from error


def mask_silhouettes(
    footage: Footage,
    world: World,
    world_from_link: Float[Tensor, "S L 4 4"],
    cameras: Cameras,
    links: Sequence[int],
    margin: float = 0.012,
) -> Footage:
    """Mask where the given links of a world appear, drawn at the pose and from the camera of each of the S shots.

    A pixel counts as a link's where that link's Gaussians weigh most; the silhouette is grown by `margin` widths.
    Raises `InputError` where poses, cameras and shots differ in number.
    """
    count = len(footage.shots)
    if len(world_from_link) != count or len(cameras) != count:
        raise InputError(
            f"{count} pictures, {len(world_from_link)} sets of link poses and {len(cameras)} cameras were given for "
            "silhouettes; equal numbers are needed."
        )
    wanted, shots = np.asarray(sorted(set(links))), []
    for index, shot in enumerate(footage.shots):
        drawn = render(world.gaussians, world_from_link[index], cameras[index], outputs=("link_id", "alpha"))
        assert drawn.link_id is not None and drawn.alpha is not None
        solid = drawn.alpha[0, 0].detach().cpu().numpy() > 0.3
        hit = np.isin(drawn.link_id[0, 0].cpu().numpy(), wanted) & solid
        shots.append(_with_mask(footage, shot, grow(hit, margin * cameras.width)))
    return _saved(footage, shots)


def _find(footage: Footage, options: MaskOptions, progress: Progress | None) -> Footage:
    shots = {shot.name: shot for shot in footage.shots}
    findings, before = [], {finding.camera: finding.digest for finding in read_findings(footage)}
    for number, camera in enumerate(footage.cameras):
        own = shots_of(footage, number)
        if not own:
            continue
        if before.get(camera.name) and before[camera.name] == _digest(own):
            own = tuple(replace(shot, mask=None) for shot in own)
        if camera.photos or all(shot.mask is not None for shot in own):
            findings.append(MaskFindings(camera.name, "given", 1.0, _masked_share(own)))
            continue

        def tell(stage: str, share: float, number: int = number, name: str = camera.name) -> None:
            if progress is not None:
                progress(f"masks of {name}: {stage}", (number + share) / len(footage.cameras))

        tell("pictures", 0.0)
        pictures = load_small([shot.image for shot in own], options.side)
        scale = camera.width / pictures.shape[2]
        movers = find_movers(pictures, camera.K[0] / scale if camera.K else 0.0, options.camera, tell)
        grown = [grow(mask, options.margin * pictures.shape[2]) for mask in movers.masks]
        for shot, mask in zip(own, grown, strict=True):
            shots[shot.name] = _with_mask(footage, shot, mask)
        alone = all(shot.mask is None for shot in own)
        finding = _finding(camera.name, movers, float(np.mean(grown)), scale)
        findings.append(replace(finding, digest=_digest([shots[shot.name] for shot in own]) if alone else ""))
    write_json(footage.folder / FILE, {"format": FORMAT, "cameras": [asdict(finding) for finding in findings]})
    return _saved(footage, [shots[shot.name] for shot in footage.shots])


def _finding(name: str, movers: Movers, masked: float, scale: float) -> MaskFindings:
    explained, focal = round(movers.explained, 4), round(movers.focal * scale, 2)
    return MaskFindings(name, movers.kind, explained, round(masked, 4), round(movers.mounted, 4), focal, movers.trusted)


def _digest(shots: Sequence[Shot]) -> str:
    """Of the mask files of shots; empty where one has none."""
    files = [shot.mask for shot in shots if shot.mask is not None and shot.mask.is_file()]
    if len(files) < len(shots):
        return ""
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _masked_share(shots: Sequence[Shot]) -> float:
    shares = [float((_read_mask(shot.mask) < 128).mean()) for shot in shots if shot.mask is not None]
    return round(sum(shares) / len(shots), 4)


def _given(footage: Footage, folder: Path, keep: str, progress: Progress | None) -> Footage:
    if not folder.is_dir():
        raise InputError(
            f"`{folder}` is no folder; a folder of PNG masks named after the pictures is needed. Check the path, or "
            "use `auto` or `none`."
        )
    shots, found = [], 0
    for index, shot in enumerate(footage.shots):
        path = _mask_file(folder, shot)
        if path is None:
            shots.append(shot)
            continue
        found += 1
        values = _read_mask(path)
        shots.append(_with_mask(footage, shot, (values < 128) if keep == "white" else (values >= 128), path))
        if progress is not None:
            progress("masks", (index + 1) / len(footage.shots))
    if not found:
        raise InputError(
            f"`{folder}` holds no mask for any of the {len(footage.shots)} pictures; PNGs named after them are "
            f"needed, such as `{footage.shots[0].name if footage.shots else 'picture'}.png`. Rename them."
        )
    return _saved(footage, shots)


def _mask_file(folder: Path, shot: Shot) -> Path | None:
    """The mask of a shot, by its own name or its picture's."""
    for stem in dict.fromkeys((shot.name, shot.image.stem)):
        for ending in ENDINGS:
            path = safe_join(folder, stem + ending)
            if path.is_file():
                return path
    return None


def _read_mask(path: Path | None) -> ndarray:
    """Values [H,W] 0..255 of a mask; of a picture with alpha alone, its alpha."""
    assert path is not None
    try:
        with Image.open(existing_file(path)) as opened:
            if opened.mode in ("RGBA", "LA") and np.asarray(opened.getchannel("A")).min() < 255:
                return np.asarray(opened.getchannel("A"))
            if opened.mode.startswith("I"):
                return np.asarray((np.asarray(opened) > 0) * np.uint8(255))
            return np.asarray(opened.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"`{path}` cannot be read as a mask ({error}); an 8-bit PNG is needed. Save it again."
        ) from error


def _with_mask(footage: Footage, shot: Shot, ignored: Bool[ndarray, "H W"], source: Path | None = None) -> Shot:
    """Write a shot's mask: what is ignored now (resized if found small), and what its mask ignored already."""
    with Image.open(shot.image) as opened:
        size = opened.size
    mask = Image.fromarray(np.where(ignored, 0, 255).astype(np.uint8))
    if mask.size != size:
        if source is not None:
            raise InputError(
                f"`{source}` is {mask.width} x {mask.height}, but its picture `{shot.image.name}` is {size[0]} x "
                f"{size[1]}; masks of the pictures' size are needed. Resize them."
            )
        mask = mask.resize(size, Image.Resampling.BILINEAR)
    use = np.asarray(mask) >= 128
    if shot.mask is not None:
        use = use & (_read_mask(shot.mask) >= 128)
    path = safe_join(footage.folder, f"masks/{shot.name}.png")
    with atomic_write(path) as stream:
        Image.fromarray(use.astype(np.uint8) * np.uint8(255)).save(stream, "PNG", compress_level=3)
    return replace(shot, mask=path)


def _saved(footage: Footage, shots: Sequence[Shot]) -> Footage:
    masked = replace(footage, shots=tuple(shots))
    save_footage(masked)
    return masked
