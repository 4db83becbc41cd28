"""The native renderer on CUDA devices: cuda_ext's kernels called through ctypes, as one differentiable torch function.

The library allocates nothing: its buffers are torch tensors, on the current stream. Views are drawn in parts, so that
scratch memory stays bounded however many worlds share the Gaussians.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from ctypes import POINTER, byref, c_char_p, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gworld.errors import GWorldError, InputError, MissingBackendError, ResourceError
from gworld.native import native_library
from gworld.render import native
from gworld.render.api import OUTPUTS, OutputName, Previous, RenderOptions, RenderOutput
from gworld.scene.cameras import Cameras
from gworld.scene.gaussians import Gaussians

SHAPES = {"rgb": (3,), "alpha": (), "depth": (), "link_id": (), "flow": (2,)}
STATE_BYTES = 1 << 30
"""Bytes of projected Gaussians in one part of a call (at least one view is drawn at a time)."""
TOO_MANY = 4
NO_KERNEL, OLD_DRIVER, NO_MEMORY = 1209, 1035, 1002


class _Plan(ctypes.Structure):
    _fields_ = [
        ("scene", native._Scene),
        ("views", native._Views),
        ("images", native._Images),
        ("tape", c_int32),
        ("fast", c_int32),
    ]


class _Bytes(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("state", "lists", "project", "draw", "backward")]


@dataclass(frozen=True)
class _Library:
    """The functions, and the type of the devices whose memory they read."""

    functions: ctypes.CDLL
    device: str = "cuda"


def native_cuda_status() -> str | None:
    """None when the CUDA renderer can run here, else one sentence: why not and what to do."""
    try:
        library = _library()
    except MissingBackendError as error:
        return str(error)
    count = c_int32()
    status = library.functions.gw_cuda_device_count(byref(count))
    if status == 0 and count.value > 0:
        return None
    reason = _text(library, status) if status else "none of compute capability 8.0 or newer"
    return (
        f"the CUDA renderer finds no device ({reason}). Use a machine with an NVIDIA GPU and a driver of version 580 "
        "or newer, or backend native-cpu."
    )


def render_native_cuda(
    gaussians: Gaussians,
    world_from_link: Tensor,
    cameras: Cameras,
    outputs: Sequence[OutputName] = ("rgb", "alpha"),
    previous: Previous | None = None,
    options: RenderOptions = RenderOptions(),  # noqa: B008 (frozen)
) -> RenderOutput:
    """Render W worlds x C cameras on the Gaussians' CUDA device in float32, on the current stream.

    Differentiable by every Gaussian attribute and by link and camera poses, the previous ones (through flow) included.
    Two runs give the same bits, unless `GWORLD_CUDA_FAST=1` asks for gradients summed by atomics, which take less
    memory. Raises `MissingBackendError` without the library or a device, `InputError` for soft bodies and tensors that
    are not on a CUDA device, `ResourceError` when memory is short.
    """
    reason = native_cuda_status()
    if reason is not None:
        raise MissingBackendError(reason)
    return _render(_library(), gaussians, world_from_link, cameras, tuple(outputs), previous, options)


def _render(
    library: _Library,
    gaussians: Gaussians,
    world_from_link: Tensor,
    cameras: Cameras,
    outputs: tuple[OutputName, ...],
    previous: Previous | None,
    options: RenderOptions,
) -> RenderOutput:
    device = gaussians.device
    if device.type != library.device:
        raise InputError(f"the Gaussians are on {device} and a CUDA device is needed. Move them, or use backend auto.")
    if gaussians.soft_links is not None:
        raise InputError("the native renderer does not blend the links of soft bodies. Use backend reference.")
    before = previous if "flow" in outputs else None
    if "flow" in outputs and before is None:
        raise InputError("flow was asked for without `previous`; give (world_from_link, cameras) of the state before.")
    tensors = [gaussians.means, gaussians.quats_wxyz, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh]
    tensors += [world_from_link, cameras.world_from_camera]
    if before is not None:
        tensors += [before[0], before[1].world_from_camera]
    tensors = [_dense(tensor, device) for tensor in tensors]
    request = _Request(
        library=library,
        device=device,
        links=gaussians.links.detach().to(torch.int32).contiguous(),
        intrinsics=_dense(cameras.K.detach(), device),
        previous_intrinsics=None if before is None else _dense(before[1].K.detach(), device),
        width=cameras.width,
        height=cameras.height,
        outputs=outputs,
        options=options,
        fast=os.environ.get("GWORLD_CUDA_FAST", "0") == "1",
    )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        pictures = _Render.apply(request, *tensors)
    else:
        pictures, _ = request.draw(tensors, tape=False)
    return RenderOutput(**{name: picture for name, picture in zip(OUTPUTS, pictures, strict=True) if name in outputs})


@dataclass(frozen=True)
class _Part:
    """Some of the views, side by side in the pictures; once they are drawn, with what a backward pass needs."""

    worlds: slice
    cameras: slice
    state: Tensor | None = None
    lists: Tensor | None = None
    pairs: int = 0

    def count(self) -> int:
        """How many views it has."""
        return (self.worlds.stop - self.worlds.start) * (self.cameras.stop - self.cameras.start)

    def halves(self) -> tuple[_Part, _Part]:
        """Two parts of about the same size; a part has either one world or all cameras of each."""
        worlds, cameras = self.worlds, self.cameras
        if worlds.stop - worlds.start > 1:
            middle = (worlds.start + worlds.stop) // 2
            return _Part(slice(worlds.start, middle), cameras), _Part(slice(middle, worlds.stop), cameras)
        middle = (cameras.start + cameras.stop) // 2
        return _Part(worlds, slice(cameras.start, middle)), _Part(worlds, slice(middle, cameras.stop))


@dataclass(frozen=True)
class _Request:
    """One call apart from its differentiable tensors (means quats log_scales opacity_logits sh, poses, cameras, and
    previous poses and cameras)."""

    library: _Library
    device: torch.device
    links: Tensor
    intrinsics: Tensor
    previous_intrinsics: Tensor | None
    width: int
    height: int
    outputs: tuple[OutputName, ...]
    options: RenderOptions
    fast: bool

    def draw(self, tensors: Sequence[Tensor], tape: bool) -> tuple[tuple[Tensor | None, ...], list[_Part]]:
        """The pictures in the order of OUTPUTS (alpha also when only a tape needs it), and the parts drawn."""
        worlds, cameras = len(tensors[5]), len(tensors[6])
        pictures: dict[str, Tensor] = {}
        with self.ready():
            for name in OUTPUTS:
                if name in self.outputs or (tape and name == "alpha"):
                    dtype = torch.int32 if name == "link_id" else torch.float32
                    shape = (worlds, cameras, self.height, self.width, *SHAPES[name])
                    pictures[name] = torch.empty(shape, dtype=dtype, device=self.device)
            todo, drawn = [_Part(slice(0, worlds), slice(0, cameras))], []
            while todo:
                part = todo.pop()
                done = self.draw_part(part, tensors, pictures, tape)
                if done is None:
                    todo += reversed(part.halves())
                elif tape:
                    drawn.append(done)
        return tuple(pictures.get(name) for name in OUTPUTS), drawn

    def draw_part(
        self, part: _Part, tensors: Sequence[Tensor], pictures: dict[str, Tensor], tape: bool
    ) -> _Part | None:
        """The part, drawn; None when it must be halved first."""
        plan, sizes, pairs = self.plan(part, tensors, pictures, tape), _Bytes(), c_int64()
        functions, single = self.library.functions, part.count() == 1
        status = functions.gw_cuda_sizes(byref(plan), 0, byref(sizes))
        if not single and (status == TOO_MANY or sizes.state > STATE_BYTES):
            return None
        self.check(status)
        state, scratch = self.buffer(sizes.state), self.buffer(sizes.project)
        memory = (state.data_ptr(), scratch.data_ptr())
        status = functions.gw_cuda_project(byref(plan), *memory, self.stream(), byref(pairs))
        if not single and status == TOO_MANY:
            return None
        self.check(status)
        self.check(functions.gw_cuda_sizes(byref(plan), pairs, byref(sizes)))
        lists, scratch = self.buffer(sizes.lists), self.buffer(sizes.draw)
        kept = (state.data_ptr(), lists.data_ptr())
        self.check(functions.gw_cuda_draw(byref(plan), pairs, *kept, scratch.data_ptr(), self.stream()))
        return _Part(part.worlds, part.cameras, state, lists, pairs.value)

    def pull(
        self,
        part: _Part,
        tensors: Sequence[Tensor],
        pictures: dict[str, Tensor],
        incoming: dict[str, Tensor],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Add what a part contributes to the gradients by `tensors`."""
        plan, sizes = self.plan(part, tensors, pictures, tape=True), _Bytes()
        self.check(self.library.functions.gw_cuda_sizes(byref(plan), part.pairs, byref(sizes)))
        scratch = self.buffer(sizes.backward)
        rows = (part.worlds, part.cameras, part.worlds, part.cameras)
        poses = [None if by is None else by[row] for by, row in zip(gradients[5:], rows, strict=False)]
        pointers = [None if by is None else by.data_ptr() for by in (*gradients[:5], *poses)]
        assert part.state is not None and part.lists is not None  # set by draw_part
        status = self.library.functions.gw_cuda_backward(
            *(byref(plan), part.pairs, part.state.data_ptr(), part.lists.data_ptr(), scratch.data_ptr()),
            *(self.stream(), byref(_images(part, incoming)), byref(native._Gradients(*pointers))),
        )
        self.check(status)

    def plan(self, part: _Part, tensors: Sequence[Tensor], pictures: dict[str, Tensor], tape: bool) -> _Plan:
        """The C struct of a part."""
        means, quats, log_scales, logits, sh = tensors[:5]
        pointers = [tensor.data_ptr() for tensor in (means, quats, log_scales, logits, sh, self.links)]
        scene = native._Scene(len(means), sh.shape[1], tensors[5].shape[1], *pointers)
        states = [tensors[5][part.worlds], tensors[6][part.cameras], self.intrinsics[part.cameras]]
        if self.previous_intrinsics is not None:
            states += [tensors[7][part.worlds], tensors[8][part.cameras], self.previous_intrinsics[part.cameras]]
        views = native._Views(
            *(len(states[0]), len(states[1]), self.width, self.height),
            *[tensor.data_ptr() for tensor in states],
            *[None] * (6 - len(states)),
            (ctypes.c_float * 3)(*self.options.background),
            self.options.near,
            min(self.options.far, 3e38),
            self.options.antialiased,
        )
        return _Plan(scene, views, _images(part, pictures), tape, self.fast)

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def stream(self) -> int | None:
        return torch.cuda.current_stream(self.device).cuda_stream if self.device.type == "cuda" else None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """On the Gaussians' device; torch's out-of-memory becomes ours."""
        try:
            with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
                yield
        except torch.OutOfMemoryError as error:
            raise ResourceError(
                f"{self.device} has too little free memory to render this. Render fewer or smaller views at a time."
            ) from error

    def check(self, status: int) -> None:
        if status == 0:
            return
        text = _text(self.library, status)
        reasons: dict[int, GWorldError] = {
            1: InputError("the native renderer was given shapes, links or planes that do not fit together."),
            TOO_MANY: ResourceError("one view has too many Gaussians or covered tiles. Render a smaller image."),
            NO_MEMORY: ResourceError(f"the CUDA renderer ran out of memory ({text}). Render fewer views at a time."),
        }
        for code in (NO_KERNEL, OLD_DRIVER):
            reasons[code] = MissingBackendError(
                f"the CUDA renderer cannot run on this GPU ({text}). A driver of version 580 or newer and a build for "
                "its compute capability are needed; rebuild gworld on this machine, or use backend gsplat."
            )
        raise reasons.get(status, GWorldError(f"the CUDA renderer failed: {text} (code {status})."))


class _Render(torch.autograd.Function):
    """The renderer as autograd sees it: request and differentiable tensors in, pictures in the order of OUTPUTS out."""

    @staticmethod
    def forward(ctx: Any, request: _Request, *tensors: Tensor) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        pictures, ctx.parts = request.draw(tensors, tape=True)
        ctx.request, ctx.count = request, len(tensors)
        ctx.mark_non_differentiable(*[p for p in pictures if p is not None and not p.is_floating_point()])
        ctx.drawn = [picture is not None for picture in pictures]
        ctx.save_for_backward(*tensors, *[picture for picture in pictures if picture is not None])
        return pictures

    @staticmethod
    def backward(ctx: Any, *image_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        request: _Request = ctx.request
        tensors, saved = ctx.saved_tensors[: ctx.count], iter(ctx.saved_tensors[ctx.count :])
        pictures = {name: next(saved) for name, drawn in zip(OUTPUTS, ctx.drawn, strict=True) if drawn}
        incoming = {
            name: _dense(gradient, request.device)
            for name, gradient in zip(OUTPUTS, image_gradients, strict=True)
            if gradient is not None and name != "link_id"
        }
        wanted = ctx.needs_input_grad[1:]
        with request.ready():
            gradients = [torch.zeros_like(x) if want else None for x, want in zip(tensors, wanted, strict=True)]
            for part in ctx.parts:
                request.pull(part, tensors, pictures, incoming, gradients)
        return (None, *gradients)


def _dense(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.dtype == torch.float32 and tensor.device == device and tensor.is_contiguous():
        return tensor  # the usual case: the calls below take microseconds, also when they change nothing
    return tensor.to(device=device, dtype=torch.float32).contiguous()


def _images(part: _Part, pictures: dict[str, Tensor]) -> native._Images:
    rows = (part.worlds, part.cameras)
    return native._Images(**{name: picture[rows].data_ptr() for name, picture in pictures.items()})


def _text(library: _Library, status: int) -> str:
    return str(library.functions.gw_cuda_error(status).decode())


@lru_cache(maxsize=1)
def _declared(functions: ctypes.CDLL) -> _Library:
    return declare(functions, "cuda")


def _library() -> _Library:
    return _declared(native_library("cuda"))


def declare(functions: ctypes.CDLL, device: str) -> _Library:
    """The library with its C signatures told to ctypes; `device` is the type of the memory that it reads."""
    plan, sizes, pointers = POINTER(_Plan), POINTER(_Bytes), [c_void_p] * 4
    functions.gw_cuda_error.restype = c_char_p
    functions.gw_cuda_sizes.argtypes = [plan, c_int64, sizes]
    functions.gw_cuda_project.argtypes = [plan, *pointers[:3], POINTER(c_int64)]
    functions.gw_cuda_draw.argtypes = [plan, c_int64, *pointers]
    images, gradients = POINTER(native._Images), POINTER(native._Gradients)
    functions.gw_cuda_backward.argtypes = [plan, c_int64, *pointers, images, gradients]
    return _Library(functions, device)
