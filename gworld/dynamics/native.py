"""Contact sweeps in cuda_ext's CPU library: what `impulses.solve_contacts` does in torch, faster.

Torch is kept where gradients are asked for, on other devices, and where the library is not built.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import POINTER, c_int32, c_int64, c_void_p
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from gworld.errors import MissingBackendError
from gworld.native import check_status, native_library

INPUTS = (
    *("a", "b", "normal", "arm_a", "arm_b", "rate", "wanted", "ease", "slip", "friction", "gives"),
    *("inverse_mass", "inverse_inertia", "lies", "up", "reach", "ease_joints"),
)
"""The arrays of gw_contacts in its order."""


class _Contacts(ctypes.Structure):
    _fields_ = [
        *[(name, c_int64) for name in ("contacts", "bodies", "worlds", "values")],
        *[(name, c_int32) for name in ("sweeps", "wide")],
        *[(name, c_void_p) for name in (*INPUTS, "impulse", "press")],
    ]


def can_sweep(tensors: Mapping[str, Tensor | None]) -> bool:
    """Whether the library can take these: no gradient is asked for, and all are on the CPU, in one precision."""
    given = [tensor for tensor in tensors.values() if tensor is not None]
    types = {tensor.dtype for tensor in given if tensor.is_floating_point()}
    if len(types) != 1 or not types <= {torch.float32, torch.float64}:
        return False
    if any(tensor.device.type != "cpu" for tensor in given):
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
        return False
    return _library() is not None


def sweep_contacts(
    tensors: Mapping[str, Tensor | None], worlds: int, sweeps: int
) -> tuple[Float[Tensor, "Q 3"], Float[Tensor, " Q"]]:
    """Impulses [Q,3] and their parts along the normals [Q]; `tensors` by the names of `INPUTS`, shaped as
    gworld_native.h says, None where it says null. Raises `InputError` for what does not fit."""
    library = _library()
    assert library is not None, "ask can_sweep first"
    dense = {name: None if value is None else value.detach().contiguous() for name, value in tensors.items()}
    normal, mass, joints = dense["normal"], dense["inverse_mass"], dense["ease_joints"]
    assert normal is not None and mass is not None
    impulse, press = torch.empty_like(normal), normal.new_empty(len(normal))
    job = _Contacts(
        *(len(normal), len(mass), worlds, 0 if joints is None else joints.shape[1]),
        *(sweeps, normal.dtype == torch.float64),
        *(None if (value := dense[name]) is None else value.data_ptr() for name in INPUTS),
        *(impulse.data_ptr(), press.data_ptr()),
    )
    check_status(library.gw_solve_contacts(ctypes.byref(job)))
    return impulse, press


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    try:
        library = native_library("cpu")
    except MissingBackendError:
        return None
    library.gw_solve_contacts.argtypes = [POINTER(_Contacts)]
    return library
