"""Fused helpers of a training loop and of video: L1 + SSIM with its gradient, sparse Adam, pictures to YUV 4:2:0.

All run in cuda_ext's CPU library on float32, with the same bits for any number of threads (`GWORLD_THREADS`) on one
instruction set (`GWORLD_ISA`). They raise `MissingBackendError` without the library and `ResourceError` when memory is
short. There is no global state but the threads: what Adam remembers is plain tensors in an `AdamState`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd.graph import increment_version

from gworld.errors import InputError, MissingBackendError
from gworld.native import ISAS, check_status, isa_number, native_library, thread_count


@dataclass(frozen=True)
class AdamOptions:
    """What all tensors of an Adam step share."""

    beta1: float = 0.9
    """Share of the old first moment that is kept."""
    beta2: float = 0.999
    """Share of the old second moment that is kept."""
    eps: float = 1e-15
    """Added to the root of the second moment; splatting's gradients are small, hence not 1e-8."""
    bias_correction: bool = True
    """Divide the moments by what has been gathered so far (torch.optim.Adam does, gsplat's SelectiveAdam does not)."""


@dataclass(frozen=True)
class AdamState:
    """Steps taken, and both moments of each parameter by its name, shaped like it."""

    step: int
    first: dict[str, Tensor]
    second: dict[str, Tensor]


def l1_ssim_loss(
    image: Tensor, truth: Tensor, *, ssim_weight: float = 0.2, mask: Tensor | None = None
) -> Float[Tensor, ""]:
    """`(1 - w) mean |image - truth| + w (1 - mean SSIM)` of pictures `[..., H, W, 3]`; gradient by the image.

    SSIM is that of `metrics.ssim`: 11 x 11 Gaussian of sigma 1.5, zeros beyond the border. With a mask `[..., H, W]`
    (bool or weights >= 0) the image is first blended into the truth, `truth + mask (image - truth)`, so that nothing
    outside it can be seen or gets a gradient, NaN included; both means are then weighted by the mask. An empty mask
    gives 0. NaN in what counts gives NaN. The gradient is made with the value, in the same pass.
    Raises `InputError` for shapes that differ, empty pictures, bad masks and weights outside 0..1.
    Source: Kerbl et al., "3D Gaussian splatting", 2023; Wang et al., "Image quality assessment", 2004.
    """
    if image.shape != truth.shape or image.ndim < 3 or image.shape[-1] != 3 or not image.numel():
        shapes = f"{list(image.shape)} and {list(truth.shape)}"
        raise InputError(f"the images have shapes {shapes}; two equal [..., H, W, 3] with a pixel at least are needed.")
    if not 0.0 <= ssim_weight <= 1.0:
        raise InputError(f"the weight of SSIM is {ssim_weight}; a number from 0 to 1 is needed.")
    if mask is not None:
        mask = mask.detach()
        if mask.shape != image.shape[:-1]:
            raise InputError(f"the mask has shape {list(mask.shape)}; {list(image.shape[:-1])} is needed.")
        if mask.dtype != torch.bool and not bool(((mask >= 0) & mask.isfinite()).all()):
            raise InputError("the mask holds weights below zero or not finite; bool or weights >= 0 are needed.")
        mask = _dense(mask)
    value: Tensor = _Loss.apply(_dense(image), _dense(truth.detach()), mask, float(ssim_weight))
    return value


def new_adam_state(params: Mapping[str, Tensor]) -> AdamState:
    """The state before the first step: moments of zero."""
    return AdamState(
        0,
        {name: torch.zeros_like(param, requires_grad=False) for name, param in params.items()},
        {name: torch.zeros_like(param, requires_grad=False) for name, param in params.items()},
    )


def adam_state_tensors(state: AdamState) -> dict[str, Tensor]:
    """The state as named tensors, for a checkpoint: `step`, `first.NAME`, `second.NAME`."""
    tensors = {"step": torch.tensor(state.step, dtype=torch.int64)}
    tensors.update({f"first.{name}": tensor for name, tensor in state.first.items()})
    tensors.update({f"second.{name}": tensor for name, tensor in state.second.items()})
    return tensors


def adam_state_from(tensors: Mapping[str, Tensor]) -> AdamState:
    """The state that `adam_state_tensors` took apart; raises `InputError` when something is missing."""
    moments = {
        kind: {name.removeprefix(f"{kind}."): value for name, value in tensors.items() if name.startswith(f"{kind}.")}
        for kind in ("first", "second")
    }
    if "step" not in tensors or moments["first"].keys() != moments["second"].keys():
        raise InputError("the Adam state lacks its step or some moments; `step`, `first.*` and `second.*` are needed.")
    return AdamState(int(tensors["step"]), moments["first"], moments["second"])


def adam_step(
    params: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None],
    state: AdamState,
    learning_rates: Mapping[str, float],
    *,
    options: AdamOptions = AdamOptions(),
    rows: str | Tensor = "all",
) -> AdamState:
    """Take one Adam step in place, on parameters and moments alike, and return the state with its step counted.

    Parameters are float32 `[N, ...]`, contiguous, on the CPU; those whose gradient is None or missing stay. `rows`
    chooses the Gaussians: `"all"`; `"touched"`, those with a non-zero gradient in some parameter; or a bool mask `[N]`.
    Others keep values and moments as they are (their moments do not decay), and the bias correction counts all steps.
    Raises `InputError` for names, shapes, types or numbers that do not fit.
    Source: Kingma and Ba, "Adam", 2015; Mallick et al., "Taming 3DGS", 2024 (sparse rows).
    """
    taken = {name: gradient for name in params if (gradient := gradients.get(name)) is not None}
    for name, gradient in taken.items():
        _check_tensors(name, params[name], gradient, state, learning_rates)
    visible = _checked_rows(rows, {len(params[name]) for name in taken})
    if not (0 <= options.beta1 < 1 and 0 <= options.beta2 < 1 and options.eps >= 0):
        raise InputError(f"{options} cannot be used; betas in 0..1 (1 excluded) and eps >= 0 are needed.")
    kept = {name: _dense(gradient.detach()) for name, gradient in taken.items()}
    tensors = [_adam_tensor(params[name], kept[name], state, name, learning_rates[name]) for name in kept]
    shared = _AdamOptions(
        *(options.beta1, options.beta2, options.eps, state.step + 1),
        None if visible is None else visible.data_ptr(),
        isinstance(rows, str) and rows == "touched",
        options.bias_correction,
    )
    workers = _workers(os.getpid(), thread_count(), isa_number())
    array = (_AdamTensor * len(tensors))(*tensors)
    check_status(workers.library.gw_adam(workers.handle, array, len(array), ctypes.byref(shared)))
    for name in kept:
        increment_version([params[name], state.first[name], state.second[name]])
    return AdamState(state.step + 1, state.first, state.second)


def yuv420_planes(rgb: Tensor) -> UInt8[Tensor, "rows columns"]:
    """A rendered picture `[H, W, 3]` in 0..1 as planar I420 `[1.5 H, W]`, BT.709 in limited range, for `open_video`.

    Values are clamped, NaN is black, a chroma sample is the mean of its four pixels. Odd sizes grow by one row or
    column that repeats the border. Raises `InputError` for another shape or type. Source: ITU-R BT.709-6.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.numel() or not rgb.is_floating_point():
        raise InputError(f"the picture is {rgb.dtype} {list(rgb.shape)}; floats [H, W, 3] are needed.")
    dense = _dense(rgb.detach())
    height, width = dense.shape[:2]
    planes = torch.empty(((height + 1) // 2 * 3, (width + 1) // 2 * 2), dtype=torch.uint8)
    workers = _workers(os.getpid(), thread_count(), isa_number())
    check_status(workers.library.gw_yuv420(workers.handle, dense.data_ptr(), height, width, planes.data_ptr()))
    return planes


class _Pictures(ctypes.Structure):
    _fields_ = [
        *[(name, c_int32) for name in ("count", "height", "width")],
        *[(name, c_void_p) for name in ("image", "truth", "mask")],
    ]


class _AdamTensor(ctypes.Structure):
    _fields_ = [
        ("rows", c_int64),
        ("width", c_int32),
        ("learning_rate", c_float),
        *[(name, c_void_p) for name in ("values", "gradients", "first", "second")],
    ]


class _AdamOptions(ctypes.Structure):
    _fields_ = [
        *[(name, c_double) for name in ("beta1", "beta2", "eps")],
        ("step", c_int64),
        ("visible", c_void_p),
        ("only_touched", c_int32),
        ("bias_correction", c_int32),
    ]


class _Workers:
    """A gw_workers and the library it belongs to."""

    def __init__(self, threads: int, isa: int) -> None:
        self.library = _declared()
        self.handle = c_void_p(self.library.gw_workers_create(threads, isa))
        if not self.handle:
            raise MissingBackendError(
                f"the native library cannot start {threads} threads with the instruction set {ISAS[isa]}. "
                "Set GWORLD_THREADS lower, or GWORLD_ISA=auto."
            )

    def __del__(self) -> None:
        if getattr(self, "handle", None) and not sys.is_finalizing():
            self.library.gw_workers_destroy(self.handle)


@lru_cache(maxsize=4)
def _workers(process: int, threads: int, isa: int) -> _Workers:
    """One set per process (a fork has no threads), thread count and instruction set."""
    return _Workers(threads, isa)


def _declared() -> ctypes.CDLL:
    library = native_library("cpu")
    if not hasattr(library, "gw_workers_create"):
        raise MissingBackendError("the native library is of an older gworld. Reinstall gworld on this machine.")
    library.gw_workers_create.restype = c_void_p
    library.gw_workers_destroy.argtypes = [c_void_p]
    library.gw_workers_destroy.restype = None
    library.gw_l1_ssim.argtypes = [c_void_p, POINTER(_Pictures), c_float, c_void_p, POINTER(c_double)]
    library.gw_adam.argtypes = [c_void_p, POINTER(_AdamTensor), c_int32, POINTER(_AdamOptions)]
    library.gw_yuv420.argtypes = [c_void_p, c_void_p, c_int32, c_int32, c_void_p]
    return library


class _Loss(torch.autograd.Function):
    """The loss as autograd sees it; its gradient is computed with the value."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, truth: Tensor, mask: Tensor | None, ssim_weight: float) -> Tensor:
        workers = _workers(os.getpid(), thread_count(), isa_number())
        gradient = torch.empty_like(image) if ctx.needs_input_grad[0] else None
        height, width = image.shape[-3:-1]
        pointers = (image.data_ptr(), truth.data_ptr(), None if mask is None else mask.data_ptr())
        pictures = _Pictures(image.numel() // (3 * height * width), height, width, *pointers)
        value = c_double()
        out = None if gradient is None else gradient.data_ptr()
        check_status(
            workers.library.gw_l1_ssim(workers.handle, ctypes.byref(pictures), ssim_weight, out, ctypes.byref(value))
        )
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return image.new_tensor(value.value)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # Most losses arrive unscaled: no need to go through the picture again then.
        return (gradient if float(incoming) == 1.0 else gradient * incoming, None, None, None)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to(device="cpu", dtype=torch.float32).contiguous()


def _check_tensors(
    name: str, param: Tensor, gradient: Tensor, state: AdamState, learning_rates: Mapping[str, float]
) -> None:
    if name not in state.first or name not in state.second or name not in learning_rates:
        raise InputError(f"{name} has no moments or no learning rate; make the state with new_adam_state.")
    for what, tensor in ((name, param), (f"first.{name}", state.first[name]), (f"second.{name}", state.second[name])):
        if (
            tensor.dtype != torch.float32
            or tensor.device.type != "cpu"
            or not tensor.is_contiguous()
            or not tensor.ndim
        ):
            raise InputError(f"{what} is not a contiguous float32 [N, ...] on the CPU, which Adam changes in place.")
        if tensor.shape != gradient.shape:
            raise InputError(f"{what} has shape {list(tensor.shape)}; its gradient has {list(gradient.shape)}.")


def _checked_rows(rows: str | Tensor, lengths: set[int]) -> Tensor | None:
    """The mask among the ways to choose rows of parameters of these lengths."""
    if isinstance(rows, str):
        if rows not in ("all", "touched"):
            raise InputError(f"rows is {rows!r}; all, touched or a bool mask is needed.")
    elif rows.dtype != torch.bool or rows.device.type != "cpu" or rows.ndim != 1:
        raise InputError(
            f"the rows are {rows.dtype} {list(rows.shape)} on {rows.device}; bool [N] on the CPU is needed."
        )
    else:
        lengths = lengths | {len(rows)}
    if len(lengths) > 1 and not (isinstance(rows, str) and rows == "all"):
        raise InputError(f"parameters and rows have lengths {sorted(lengths)}; one row per Gaussian is needed.")
    return None if isinstance(rows, str) else rows.detach().contiguous()


def _adam_tensor(param: Tensor, gradient: Tensor, state: AdamState, name: str, learning_rate: float) -> _AdamTensor:
    pointers = [tensor.data_ptr() for tensor in (param, gradient, state.first[name], state.second[name])]
    return _AdamTensor(len(param), max(param[:1].numel(), 1), learning_rate, *pointers)
