"""The native CPU renderer over a background that stands still: frame after frame only what moves is drawn.

For fixed cameras, the Gaussians of links that do not move are projected, sorted and drawn once. A frame then projects
and sorts the moving ones alone, merges them into the kept depth-ordered lists of the image tiles that they touch, and
blends those tiles; the rest is the background's picture. The result has the same bits as a full render.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Hashable, Sequence
from ctypes import POINTER, c_int32, c_void_p
from dataclasses import fields

from torch import Tensor

from gworld.errors import InputError, MissingBackendError
from gworld.native import check_status
from gworld.render.api import OUTPUTS
from gworld.render.native import _Context, _Images, _images, _Request, _Scene, _Views
from gworld.scene.gaussians import Gaussians


class BackgroundCache:
    """What repeated renders of one scene from fixed cameras share; give the same object to each call.

    `moving_links` may move between frames (by default all but link 0); the other links must stand, in all worlds alike.
    Whatever else changes is noticed: Gaussians (by tensor identity and version, so in-place torch operations count),
    still links, cameras, size, outputs, options, threads, instruction set. Such a call renders in full; the background
    is drawn anew when the next call asks for the same. Writes that torch does not see (through `.data`, numpy or a
    foreign pointer) need `forget()`. Tensors made in inference mode have no version and are rendered in full.

    With `reuse_pictures` each call writes into the pictures that the call before returned, and only where something
    moved: read them before the next call, and do not write to them. Forward only: calls that need gradients render in
    full. The cache holds a copy of the moving Gaussians and, per camera, the background's records and pictures.
    `frames` counts the pictures' batches drawn from the cache and `builds` the backgrounds drawn.
    """

    def __init__(self, moving_links: Sequence[int] | None = None, *, reuse_pictures: bool = False) -> None:
        self.moving_links = None if moving_links is None else frozenset(moving_links)
        self.reuse_pictures = reuse_pictures
        self.frames = self.builds = 0
        self._seen: Hashable = None
        self._alive: list[Tensor] = []
        self._background: _Background | None = None
        self._pictures: dict[str, Tensor] | None = None

    def forget(self) -> None:
        """Drop the background and the pictures; the next call draws them anew."""
        self._seen, self._alive = None, []
        self._drop()

    def draw(self, request: _Request, gaussians: Gaussians, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The pictures of `request` in the order of OUTPUTS, from the background where it serves (for `native.py`)."""
        moves = self._moves(tensors[5].shape[1])
        columns = [column for column in (getattr(gaussians, f.name) for f in fields(gaussians)) if column is not None]
        seen = _fingerprint(request, columns, moves, tensors)
        if seen is None or seen != self._seen:
            first = self._seen is None
            self._drop()
            self._seen, self._alive = seen, columns  # what is alive keeps its identity
            if seen is None or not first:
                return request.draw(tensors, None)
        pictures, kept = self._pictures, True
        if pictures is None or next(iter(pictures.values())).shape[0] != len(tensors[5]):
            pictures, kept = request.pictures(tensors), False
        if self._background is None:
            self._background = _Background(request, bytes(moves), tensors, pictures)
            self.builds += 1
        self._background.draw(request, tensors, pictures, kept)
        self.frames += 1
        if self.reuse_pictures:
            self._pictures = pictures
        return tuple(pictures.get(name) for name in OUTPUTS)

    def _drop(self) -> None:
        self._background = self._pictures = None

    def _moves(self, links: int) -> list[bool]:
        if self.moving_links is None:
            return [link > 0 for link in range(links)]
        if not all(0 <= link < links for link in self.moving_links):
            raise InputError(f"the cache has the moving links {sorted(self.moving_links)} but there are {links} links.")
        return [link in self.moving_links for link in range(links)]


class _Background:
    """A gw_background of one context."""

    def __init__(self, request: _Request, moves: bytes, tensors: Sequence[Tensor], pictures: dict[str, Tensor]) -> None:
        self.context, self.handle = request.context, c_void_p()
        _declare(self.context)
        check_status(
            self.context.library.gw_background_build(
                self.context.handle,
                ctypes.byref(request.scene(tensors)),
                moves,
                ctypes.byref(request.views(tensors)),
                ctypes.byref(_images(pictures)),
                ctypes.byref(self.handle),
            )
        )

    def draw(self, request: _Request, tensors: Sequence[Tensor], pictures: dict[str, Tensor], kept: bool) -> None:
        """Draw into `pictures`, which hold the frame drawn last when `kept`."""
        views, images = request.views(tensors), _images(pictures)
        library = self.context.library
        check_status(
            library.gw_background_draw(
                self.context.handle, self.handle, ctypes.byref(views), ctypes.byref(images), int(kept)
            )
        )

    def __del__(self) -> None:
        if self.handle and not sys.is_finalizing():
            self.context.library.gw_background_destroy(self.handle)


def _fingerprint(
    request: _Request, columns: Sequence[Tensor], moves: Sequence[bool], tensors: Sequence[Tensor]
) -> Hashable:
    """All that the background depends on; None where no background would do: worlds differ, or versions are missing."""
    if any(column.is_inference() for column in columns):
        return None
    still = [link for link, moving in enumerate(moves) if not moving]
    poses = [tensor.detach()[:, still].numpy() for tensor in (tensors[5], *tensors[7:8])]
    if any((pose != pose[:1]).any() for pose in poses):
        return None
    cameras = [tensor.detach().numpy() for tensor in (request.intrinsics, tensors[6], *tensors[8:9])]
    if request.previous_intrinsics is not None:
        cameras.append(request.previous_intrinsics.numpy())
    return (
        tuple((id(column), column.data_ptr(), column.shape, column._version) for column in columns),
        tuple(moves),
        (request.context, request.width, request.height, frozenset(request.outputs), request.options),
        tuple(pose[0].tobytes() for pose in poses),
        tuple(camera.tobytes() for camera in cameras),
    )


def _declare(context: _Context) -> None:
    library = context.library
    if not hasattr(library, "gw_background_build"):
        raise MissingBackendError("the native renderer is of another version of gworld. Reinstall gworld here.")
    views, images = POINTER(_Views), POINTER(_Images)
    library.gw_background_build.argtypes = [c_void_p, POINTER(_Scene), ctypes.c_char_p, views, images, c_void_p]
    library.gw_background_draw.argtypes = [c_void_p, c_void_p, views, images, c_int32]
    library.gw_background_destroy.argtypes = [c_void_p]
    library.gw_background_destroy.restype = None
