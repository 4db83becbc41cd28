"""The native renderer: cuda_ext's C interface called through ctypes, as one differentiable torch function.

Each (threads, instruction set) gets one context, which owns threads and scratch memory.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gworld.errors import InputError, MissingBackendError
from gworld.native import ISAS, check_status, isa_number, native_library, thread_count
from gworld.render.api import OUTPUTS, OutputName, Previous, RenderOptions, RenderOutput
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians

if TYPE_CHECKING:
    from gworld.render.native_cache import BackgroundCache

SHAPES = {"rgb": (3,), "alpha": (), "depth": (), "link_id": (), "flow": (2,)}


class _Scene(ctypes.Structure):
    _fields_ = [
        ("count", c_int64),
        ("sh_count", c_int32),
        ("link_count", c_int32),
        *[(name, c_void_p) for name in ("means", "quats", "log_scales", "opacity_logits", "sh", "links")],
    ]


class _Views(ctypes.Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("worlds", "cameras", "width", "height")],
        *[(name, c_void_p) for name in ("world_from_link", "world_from_camera", "intrinsics")],
        *[(f"previous_{name}", c_void_p) for name in ("world_from_link", "world_from_camera", "intrinsics")],
        ("background", c_float * 3),
        ("near_plane", c_float),
        ("far_plane", c_float),
        ("antialiased", c_int32),
    ]


class _Images(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("rgb", "alpha", "depth", "flow", "link_id")]


class _Gradients(ctypes.Structure):
    _fields_ = [
        *[(name, c_void_p) for name in ("means", "quats", "log_scales", "opacity_logits", "sh")],
        *[(name, c_void_p) for name in ("world_from_link", "world_from_camera")],
        *[(f"previous_{name}", c_void_p) for name in ("world_from_link", "world_from_camera")],
    ]


def native_cpu_status() -> str | None:
    """None when the native CPU renderer can run here, else one sentence: why not and what to do."""
    try:
        _library()
    except MissingBackendError as error:
        return str(error)
    return None


def native_version() -> str:
    """Version of the loaded CPU library. Raises `MissingBackendError` when there is none."""
    return str(_library().gw_version().decode())


def native_isas() -> tuple[str, ...]:
    """Instruction sets that the CPU library can use on this machine, slowest first."""
    library = _library()
    return tuple(name for index, name in enumerate(ISAS) if index and library.gw_isa_available(index))


def render_native_cpu(
    gaussians: Gaussians,
    world_from_link: Tensor,
    cameras: Cameras,
    outputs: Sequence[OutputName] = ("rgb", "alpha"),
    previous: Previous | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
    cache: BackgroundCache | None = None,
) -> RenderOutput:
    """Render W worlds x C cameras on the CPU in float32; the `Backend` that needs no GPU.

    With `cache` and no gradients to compute, what stands still is drawn once and kept there (native_cache.py).

    Differentiable by every Gaussian attribute and by link and camera poses, the previous ones (through flow) included.
    The same bits for any number of threads (`GWORLD_THREADS`, else the cores this process may use) on one instruction
    set (`GWORLD_ISA`: auto, portable, avx2, avx512). Raises `MissingBackendError` without the library, `InputError` for
    soft bodies and bad sizes, `ResourceError` when memory is short.
    """
    if gaussians.soft_links is not None:
        raise InputError("the native renderer does not blend the links of soft bodies. Use backend reference.")
    before = previous if "flow" in outputs else None
    if "flow" in outputs and before is None:
        raise InputError("flow was asked for without `previous`; give (world_from_link, cameras) of the state before.")
    tensors = [gaussians.means, gaussians.quats_wxyz, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh]
    tensors += [world_from_link, cameras.world_from_camera]
    if before is not None:
        tensors += [before[0], before[1].world_from_camera]
    tensors = [_dense(tensor) for tensor in tensors]
    request = _Request(
        context=_context(os.getpid(), thread_count(), isa_number()),
        links=gaussians.links.detach().to(device="cpu", dtype=torch.int32).contiguous(),
        intrinsics=_dense(cameras.K.detach()),
        previous_intrinsics=None if before is None else _dense(before[1].K.detach()),
        width=cameras.width,
        height=cameras.height,
        outputs=tuple(outputs),
        options=options,
    )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        pictures = _Render.apply(request, *tensors)
    else:
        pictures = request.draw(tensors, None) if cache is None else cache.draw(request, gaussians, tensors)
    return RenderOutput(**{name: picture for name, picture in zip(OUTPUTS, pictures, strict=True) if name in outputs})


class _Context:
    """A gw_context and the library it belongs to."""

    def __init__(self, threads: int, isa: int) -> None:
        self.library = _library()
        self.handle = c_void_p(self.library.gw_context_create(threads, isa))
        if not self.handle:
            raise MissingBackendError(
                f"the native renderer cannot start {threads} threads with the instruction set {ISAS[isa]}. "
                "Set GWORLD_THREADS lower, or GWORLD_ISA=auto."
            )

    def __del__(self) -> None:
        if getattr(self, "handle", None) and not sys.is_finalizing():
            self.library.gw_context_destroy(self.handle)


class _Tape:
    """What one forward pass keeps for its backward pass; given back to the context when dropped."""

    def __init__(self, context: _Context) -> None:
        self.context = context
        self.handle = c_void_p()

    def __del__(self) -> None:
        if self.handle and not sys.is_finalizing():
            self.context.library.gw_tape_release(self.context.handle, self.handle)


@dataclass(frozen=True)
class _Request:
    """One call apart from its differentiable tensors (means quats log_scales opacity_logits sh, poses, cameras, and
    previous poses and cameras)."""

    context: _Context
    links: Tensor
    intrinsics: Tensor
    previous_intrinsics: Tensor | None
    width: int
    height: int
    outputs: tuple[OutputName, ...]
    options: RenderOptions

    def draw(self, tensors: Sequence[Tensor], tape: _Tape | None) -> tuple[Tensor | None, ...]:
        """The pictures in the order of OUTPUTS; alpha is drawn also when only a tape needs it."""
        pictures = self.pictures(tensors, () if tape is None else ("alpha",))
        check_status(
            self.context.library.gw_render(
                self.context.handle,
                ctypes.byref(self.scene(tensors)),
                ctypes.byref(self.views(tensors)),
                ctypes.byref(_images(pictures)),
                None if tape is None else ctypes.byref(tape.handle),
            )
        )
        return tuple(pictures.get(name) for name in OUTPUTS)

    def pictures(self, tensors: Sequence[Tensor], more: Sequence[str] = ()) -> dict[str, Tensor]:
        """Memory for the pictures asked for, and for `more`."""
        shape = (len(tensors[5]), len(tensors[6]), self.height, self.width)
        types = {name: torch.int32 if name == "link_id" else torch.float32 for name in OUTPUTS}
        wanted = [name for name in OUTPUTS if name in self.outputs or name in more]
        return {name: torch.empty(shape + SHAPES[name], dtype=types[name]) for name in wanted}

    def scene(self, tensors: Sequence[Tensor]) -> _Scene:
        """The C struct of the Gaussians."""
        means, quats, log_scales, logits, sh, world_from_link = tensors[:6]
        pointers = [tensor.data_ptr() for tensor in (means, quats, log_scales, logits, sh, self.links)]
        return _Scene(len(means), sh.shape[1], world_from_link.shape[1], *pointers)

    def views(self, tensors: Sequence[Tensor]) -> _Views:
        """The C struct of poses, cameras and options."""
        poses, cameras = tensors[5:7]
        before: list[int | None] = [tensor.data_ptr() for tensor in tensors[7:9]]
        before = before or [None, None]
        before.append(None if self.previous_intrinsics is None else self.previous_intrinsics.data_ptr())
        return _Views(
            *(len(poses), len(cameras), self.width, self.height),
            *(poses.data_ptr(), cameras.data_ptr(), self.intrinsics.data_ptr()),
            *before,
            (c_float * 3)(*self.options.background),
            self.options.near,
            min(self.options.far, 3e38),
            self.options.antialiased,
        )


class _Render(torch.autograd.Function):
    """The renderer as autograd sees it: request and differentiable tensors in, pictures in the order of OUTPUTS out."""

    @staticmethod
    def forward(ctx: Any, request: _Request, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.request, ctx.tape = request, _Tape(request.context)
        pictures = request.draw(tensors, ctx.tape)
        ctx.mark_non_differentiable(*[p for p in pictures if p is not None and not p.is_floating_point()])
        ctx.drawn = [picture is not None for picture in pictures]
        ctx.save_for_backward(*tensors, *[picture for picture in pictures if picture is not None])
        ctx.count = len(tensors)
        return pictures

    @staticmethod
    def backward(ctx: Any, *image_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[: ctx.count], iter(ctx.saved_tensors[ctx.count :])
        pictures = {name: next(saved) for name, drawn in zip(OUTPUTS, ctx.drawn, strict=True) if drawn}
        incoming = {
            name: _dense(gradient)
            for name, gradient in zip(OUTPUTS, image_gradients, strict=True)
            if gradient is not None and name != "link_id"
        }
        wanted = ctx.needs_input_grad[1:]
        gradients = [torch.empty_like(tensor) if want else None for tensor, want in zip(tensors, wanted, strict=True)]
        pointers = [None if gradient is None else gradient.data_ptr() for gradient in gradients]
        request: _Request = ctx.request
        check_status(
            request.context.library.gw_backward(
                request.context.handle,
                ctypes.byref(request.scene(tensors)),
                ctypes.byref(request.views(tensors)),
                ctypes.byref(_images(pictures)),
                ctypes.byref(_images(incoming)),
                ctx.tape.handle,
                ctypes.byref(_Gradients(*pointers)),
            )
        )
        return (None, *gradients)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to(device="cpu", dtype=torch.float32).contiguous()


def _images(pictures: dict[str, Tensor]) -> _Images:
    return _Images(**{name: picture.data_ptr() for name, picture in pictures.items()})


@lru_cache(maxsize=4)
def _context(process: int, threads: int, isa: int) -> _Context:
    """One context per process (a fork has no threads), thread count and instruction set."""
    return _Context(threads, isa)


def _library() -> ctypes.CDLL:
    return _declared(native_library("cpu"))


@lru_cache(maxsize=1)
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.gw_version.restype = ctypes.c_char_p
    library.gw_context_create.restype = c_void_p
    library.gw_context_destroy.argtypes = [c_void_p]
    library.gw_context_destroy.restype = None
    library.gw_render.argtypes = [c_void_p, POINTER(_Scene), POINTER(_Views), POINTER(_Images), c_void_p]
    scene, images = POINTER(_Scene), POINTER(_Images)
    library.gw_backward.argtypes = [c_void_p, scene, POINTER(_Views), images, images, c_void_p, POINTER(_Gradients)]
    library.gw_tape_release.argtypes = [c_void_p, c_void_p]
    library.gw_tape_release.restype = None
    return library
