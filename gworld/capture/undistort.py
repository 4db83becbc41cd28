"""Pictures, masks and depth of any lens turned into those of a pinhole camera.

Pixel centres lie at +0.5 here and in COLMAP; only OpenCV's remap counts from the middle of the first pixel.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gworld.capture.matching import Progress
from gworld.errors import InputError
from gworld.formats.camera_models import ColmapCamera, colmap_camera
from gworld.scene.views import View, Views

MOST_ZOOM = 1.5
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_TINY = 0.02  # pixels: a lens whose corners move less is a pinhole already


class _Warp:
    """The pinhole K of a lens, and where its pixels lie in the original picture; None where nothing moves."""

    def __init__(self, camera: ColmapCamera) -> None:
        self.camera = camera
        self.lens = _lens(camera)
        K = np.asarray(self.lens.calibration_matrix(), np.float64)
        plain = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
        edge = _border(camera.width, camera.height)
        self.moves = bool(np.abs(self._source(plain, edge) - edge).max() > _TINY)
        self.K = self._zoomed(plain, edge) if self.moves else plain
        self.maps = self._maps() if self.moves else None

    def _source(self, K: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        rays = np.concatenate([(pixels - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((len(pixels), 1))], axis=1)
        return np.asarray(self.lens.img_from_cam(rays), np.float64)

    def _zoomed(self, K: np.ndarray, edge: np.ndarray) -> np.ndarray:
        """The widest view, up to a limit, that shows no pixel from outside the picture."""
        low, high = 0.8, MOST_ZOOM
        for _ in range(30):
            zoom = (low + high) / 2
            spot = self._source(K * [[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]], edge)
            inside = np.isfinite(spot).all() and (spot >= 0).all() and (spot <= self._size()).all()
            low, high = (low, zoom) if inside else (zoom, high)
        return K * [[high, 1, 1], [1, high, 1], [1, 1, 1]]

    def _size(self) -> np.ndarray:
        return np.array([self.camera.width, self.camera.height], np.float64)

    def _maps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Columns and rows as `cv2.remap` counts them, and which pixels exist."""
        width, height = self.camera.width, self.camera.height
        x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        spot = self._source(self.K, np.stack([x.ravel(), y.ravel()], axis=1)).reshape(height, width, 2)
        known = np.isfinite(spot).all(-1) & (spot >= 0).all(-1) & (spot <= self._size()).all(-1)
        spot = np.where(known[..., None], spot - 0.5, -1e4).astype(np.float32)
        return np.ascontiguousarray(spot[..., 0]), np.ascontiguousarray(spot[..., 1]), known


def undistort_views(views: Views, folder: Path, progress: Progress = None) -> Views:
    """Write pinhole `images/`, `masks/` and `depth/` of all views into `folder`, and return the views of these files.

    A picture keeps its size; the focal length grows until no pixel is missing, to at most 1.5 times what it was, and
    pixels that are missing even so are masked. Raises `InputError` for pictures that are missing, damaged or of
    another size than their camera, and for panoramas.
    """
    warps: dict[ColmapCamera, _Warp] = {}
    done = []
    for index, view in enumerate(views.views):
        camera = _colmap_camera(view)
        if camera not in warps:
            warps[camera] = _Warp(camera)
        done.append(_undistort_view(view, warps[camera], folder))
        if progress is not None:
            progress("undistorted pictures", (index + 1) / len(views))
    return replace(views, views=tuple(done))


def _colmap_camera(view: View) -> ColmapCamera:
    if view.model == "equirectangular":
        raise InputError(f"view `{view.name}` is a panorama; cut it into pinhole pictures first.")
    if view.model == "other" and view.source_model:
        return ColmapCamera(view.source_model, view.width, view.height, view.source_params)
    return colmap_camera(view)


def _lens(camera: ColmapCamera) -> Any:
    import pycolmap

    return pycolmap.Camera(
        model=camera.model, width=camera.width, height=camera.height, params=np.array(camera.params, np.float64)
    )


def _undistort_view(view: View, warp: _Warp, folder: Path) -> View:
    import cv2

    if view.image is None:
        raise InputError(f"view `{view.name}` has no picture; put it beside the poses.")
    name = view.name.replace("/", "-")
    image = folder / "images" / name
    mask = None if view.mask is None else folder / "masks" / f"{Path(name).stem}.png"
    depth = None if view.depth is None else folder / "depth" / f"{Path(name).stem}.png"
    for file in (image, mask, depth):
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    size = view.width, view.height
    if warp.maps is None:
        for source, target in ((view.image, image), (view.mask, mask), (view.depth, depth)):
            if source is not None and target is not None:
                _read(source, size, "L" if target is mask else "")
                if source.resolve() != target.resolve():
                    shutil.copyfile(source, target)
    else:
        column, row, known = warp.maps
        picture = cv2.remap(
            _read(view.image, size, "RGB"), column, row, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        _write(image, picture)
        if mask is not None or not known.all():
            given = _read(view.mask, size, "L") if view.mask is not None else np.full(size[::-1], 255, np.uint8)
            mask = folder / "masks" / f"{Path(name).stem}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            _write(mask, np.where(known, cv2.remap(given, column, row, cv2.INTER_NEAREST), 0).astype(np.uint8))
        if depth is not None and view.depth is not None:
            _write(depth, cv2.remap(_read(view.depth, size, ""), column, row, cv2.INTER_NEAREST))
    return replace(
        view, name=name, K=torch.from_numpy(warp.K), model="pinhole", distortion=(), source_model="", source_params=(),
        image=image, mask=mask, depth=depth,
    )  # fmt: skip


def _read(path: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    """A picture as an array, in a mode of Pillow's or ("") its own, of the size its camera has."""
    from PIL import Image

    try:
        with Image.open(path, formats=_PICTURES) as picture:
            if picture.size != size:
                raise InputError(
                    f"`{path}` is {picture.size[0]} x {picture.size[1]} pixels, its camera {size[0]} x {size[1]}. "
                    "Use the pictures the poses were made of."
                )
            return np.asarray(picture.convert(mode) if mode else picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"`{path}` cannot be read as a picture: {error!s:.200}. Replace it.") from error


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    picture = Image.fromarray(pixels)
    if path.suffix.lower() in (".jpg", ".jpeg"):
        picture.save(path, quality=97, subsampling=0)
    else:
        picture.save(path, compress_level=3)


def _border(width: int, height: int) -> np.ndarray:
    """The outer edge of a picture as points [N,2] in pixels."""
    across, down = np.linspace(0, width, 65), np.linspace(0, height, 65)
    sides = [np.stack([across, np.full(65, y)], 1) for y in (0.0, height)]
    return np.concatenate([*sides, *[np.stack([np.full(65, x), down], 1) for x in (0.0, width)]])
