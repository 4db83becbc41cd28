"""Known poses first: cameras that others calibrated or posed, brought to the pictures of a capture."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from gworld.capture.calibration import is_calibration, read_calibration
from gworld.capture.footage import Footage, FootageCamera, Shot, shots_of
from gworld.errors import InputError
from gworld.formats.registry import colmap_folder, read_views
from gworld.scene.views import View, Views

DOWNSCALES = (1, 2, 4, 8)
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp")
_MAX_STRETCH = 0.01
# What Pillow's header parsers were seen to raise on damaged files, or document.
_PILLOW_ERRORS = (OSError, ValueError, ArithmeticError, LookupError, EOFError, SyntaxError, TypeError, RuntimeError)


def known_views(path: str | Path, downscale: int = 1) -> Views:
    """Posed views of a COLMAP model, a nerfstudio or ns-process-data folder, a transforms.json or a calibration file.

    Pictures, masks and depth maps are found where those tools put them. `downscale` 2, 4 or 8 takes `images_2` and
    the like, as `ns-process-data` writes them; where only a smaller set is there, that is taken. K follows the size
    the pictures really have. A calibration (see `calibration.py`) gives views without pictures, one for each camera.
    Raises `InputError` when nothing is there, and when a picture is of another shape than its camera.
    """
    source = Path(path)
    if downscale not in DOWNSCALES:
        raise InputError(f"pictures at 1/{downscale} of their size were asked for; 1, 2, 4 or 8 can be had.")
    if source.is_dir():
        lists = [source / name for name in ("cameras.json", "calibration.json") if (source / name).is_file()]
        posed = (source / "transforms.json").is_file() or colmap_folder(source) is not None
        source = lists[0] if lists and not posed and is_calibration(lists[0]) else source
    if source.is_file() and source.suffix.lower() == ".json" and is_calibration(source):
        return read_calibration(source)
    views = read_views(source)
    if not len(views):
        raise InputError(f"`{source}` holds no posed picture; at least one is needed. Export it again.")
    root = _root(source)
    return replace(views, views=tuple(_with_files(view, root, downscale) for view in views.views))


def match_known(footage: Footage, views: Views) -> Views:
    """The known pose of each picture of the footage: by picture, or by camera where a camera stands still.

    A view belongs to a picture when their names are equal without folders and suffixes (`images/0012.png`, `0012`), and
    to all pictures of a camera when it bears the camera's name or that of its file (`left.mp4`, `left`). Lens, pose
    and points are the views', the K at the size of the footage; picture, mask, depth and time are the footage's (mask
    and depth the views' where the footage has none). A sensor's depth stays in its own metres: `upright.depth_to_scale`
    brings views that are not metric to it.
    Pictures without a pose are left out. Raises `InputError` when a camera has none, when a name fits several views,
    and when shapes differ.
    """
    by_stem: dict[str, list[View]] = {}
    for view in views.views:
        by_stem.setdefault(_stem(view.name), []).append(view)
    measured = any(shot.depth for shot in footage.shots)  # one unit holds for all: the sensor's, or the views'
    found: list[View] = []
    for index, camera in enumerate(footage.cameras):
        shots = shots_of(footage, index)
        matched = _match_camera(camera, shots, by_stem)
        if shots and not matched:
            raise InputError(
                f"camera `{camera.name}` has no known pose: none of {_few(by_stem)} is called like it or like one of "
                f"its {len(shots)} pictures ({_few(shot.name for shot in shots)}). Name cameras or pictures alike."
            )
        found += [_take(view, shot, camera, index + 1, not measured) for shot, view in matched]
    if not found:
        raise InputError("the footage has no pictures to which known poses could belong. Capture it again.")
    return replace(views, views=tuple(found), depth_scale=footage.depth_scale if measured else views.depth_scale)


def resize_view(view: View, width: int, height: int) -> View:
    """The same view for a picture of another size; raises `InputError` when the shape is another."""
    across, down = width / view.width, height / view.height
    if abs(across / down - 1) > _MAX_STRETCH:
        raise InputError(
            f"the picture of `{view.name}` is {width} x {height} but its camera was calibrated at {view.width} x "
            f"{view.height}: another shape. Give pictures that are not cropped, or the calibration of these."
        )
    if (width, height) == (view.width, view.height):
        return view
    if view.model == "other":
        raise InputError(
            f"`{view.name}` was calibrated at {view.width} x {view.height} with the model {view.source_model}, which "
            f"is not known well enough for pictures of {width} x {height}. Undistort the pictures first."
        )
    factors = torch.tensor([[across], [down], [1.0]], dtype=view.K.dtype)
    return replace(view, width=width, height=height, K=view.K * factors, source_model="", source_params=())


def _match_camera(
    camera: FootageCamera, shots: tuple[Shot, ...], by_stem: dict[str, list[View]]
) -> list[tuple[Shot, View]]:
    matched = []
    for shot in shots:
        names = (_stem(shot.name), _stem(shot.image.name))
        candidates = next((by_stem[name] for name in names if name in by_stem), [])
        if candidates:
            matched.append((shot, _only(candidates, f"picture `{shot.name}`", camera.name)))
    if matched:
        return matched
    for name in (_stem(camera.name), _stem(camera.source)):
        if name in by_stem:
            view = _only(by_stem[name], f"camera `{camera.name}`", camera.name)
            return [(shot, view) for shot in shots]
    return []


def _only(candidates: list[View], what: str, camera: str) -> View:
    """The one candidate, or the one whose folder bears the camera's name."""
    if len(candidates) > 1:
        candidates = [one for one in candidates if camera in PurePosixPath(one.name).parts[:-1]] or candidates
    if len(candidates) > 1:
        raise InputError(f"{what} may be any of the known views {_few(one.name for one in candidates)}; rename them.")
    return candidates[0]


def _take(view: View, shot: Shot, camera: FootageCamera, number: int, depth_of_views: bool) -> View:
    sized = resize_view(view, camera.width, camera.height)
    same = (view.width, view.height) == (camera.width, camera.height)  # else its mask and depth map do not fit
    mask = shot.mask or (view.mask if same else None)
    depth = (view.depth if same else None) if depth_of_views else shot.depth
    return replace(sized, name=shot.name, image=shot.image, mask=mask, depth=depth, time=shot.time, camera_id=number)


def _root(source: Path) -> Path:
    """The data set's folder: that of a transforms.json, or the one around a COLMAP model."""
    folder = source if source.is_dir() else source.parent
    for place in (folder, *list(folder.resolve().parents)[:3]):
        if any((place / name).is_dir() for name in ("images", *(f"images_{n}" for n in DOWNSCALES[1:]))):
            return place
    return folder


def _with_files(view: View, root: Path, downscale: int) -> View:
    """The view with the picture of the size that was asked for, else the nearest there is, and K to match it."""
    order = sorted(DOWNSCALES, key=lambda scale: (abs(scale - downscale), scale))
    image = next((file for scale in order if (file := _at_scale(view, view.image, root, "images", scale))), None)
    if image is None:
        raise InputError(
            f"the picture of `{view.name}` is missing below `{root}`; it is needed as images/{view.name}. Copy the "
            "pictures beside their poses."
        )
    width, height = _picture_size(image)
    if (view.width > view.height) != (width > height) and (width, height) == (view.height, view.width):
        raise InputError(
            f"`{image}` is {width} x {height} but its camera {view.width} x {view.height}: the picture was turned "
            "after it was posed. Use the pictures that were posed."
        )
    mask, depth = view.mask, view.depth
    for name in ("masks", "mask"):
        mask = mask or next((file for n in order if (file := _at_scale(view, None, root, name, n))), None)
    for name in ("depths", "depth"):
        depth = depth or next((file for n in order if (file := _at_scale(view, None, root, name, n))), None)
    mask, depth = (_like(file, root, image) for file in (mask, depth))
    return replace(resize_view(view, width, height), image=image, mask=mask, depth=depth)


def _at_scale(view: View, known: Path | None, root: Path, kind: str, scale: int) -> Path | None:
    """The view's file in `kind` or `kind_2`...: by its name, with `.png` added, or with another suffix."""
    if scale == 1 and known is not None:
        return known
    folder = root / (kind if scale == 1 else f"{kind}_{scale}")
    if not folder.is_dir():
        return None
    name = PurePosixPath(view.name)
    if name.is_absolute() or ".." in name.parts:
        return None
    inner = (
        PurePosixPath(*name.parts[1:]) if re.fullmatch(r"images(_\d)?", name.parts[0]) and len(name.parts) > 1 else name
    )
    if known is not None:
        inner = inner.with_suffix(known.suffix)
    names = (str(inner), f"{inner}.png", *(str(inner.with_suffix(suffix)) for suffix in _SUFFIXES))
    return next((folder / one for one in names if (folder / one).is_file()), None)


def _like(file: Path | None, root: Path, image: Path) -> Path | None:
    """A mask or depth map of the picture's size: the one in `masks_2` and the like, where a smaller picture is used."""
    if file is None or _picture_size(file) == _picture_size(image):
        return file
    for scale in DOWNSCALES[1:]:
        smaller = file.parent.with_name(f"{re.sub(r'_[248]$', '', file.parent.name)}_{scale}") / file.name
        if smaller.is_file() and _picture_size(smaller) == _picture_size(image):
            return smaller
    raise InputError(
        f"`{file}` is of another size than `{image}` ({_picture_size(file)} against {_picture_size(image)}), and no "
        f"smaller one is in `{root}`. Resize masks and depth maps as the pictures, or use the pictures at full size."
    )


def _picture_size(image: Path) -> tuple[int, int]:
    """Width and height from a picture's header."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(image, formats=_PICTURES) as picture:
                return picture.size
    except (*_PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise InputError(f"`{image}` cannot be read as a picture: {error!s:.200}. Replace it.") from error


def _stem(name: str) -> str:
    """A name without folders and without the suffix of a picture or video."""
    last = PurePosixPath(name).name
    return re.sub(r"(?i)\.(png|jpe?g|webp|bmp|tiff?|mp4|mov|mkv|avi|webm|m4v)$", "", last)


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(f"`{name}`" for name in listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
