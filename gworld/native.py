"""cuda_ext's libraries: where they are found, how they are loaded, and what their status codes say.

A library is looked for in `GWORLD_NATIVE_DIR`, beside the package, and where the installed distribution keeps its files
(editable installs).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from gworld.errors import GWorldError, InputError, MissingBackendError, ResourceError

ABI_VERSION = 2
ISAS = ("auto", "portable", "avx2", "avx512")


def native_library(kind: str) -> ctypes.CDLL:
    """The library of a target, `cpu` or `cuda`; raises `MissingBackendError` where it is missing or too old."""
    return _load(kind, tuple(_folders()))


def check_status(status: int) -> None:
    """Raise what a call's status code says, if it says anything."""
    if status == 0:
        return
    reasons: dict[int, GWorldError] = {
        1: InputError("the native library was given shapes, links or planes that do not fit together."),
        2: ResourceError("the native library ran out of memory. Take fewer or smaller views at a time."),
        4: ResourceError("the Gaussians cover too many image tiles in one view. Render a smaller image."),
    }
    raise reasons.get(status, GWorldError(f"the native library failed with code {status}."))


def thread_count() -> int:
    """`GWORLD_THREADS`, else the cores that this process may use; raises `InputError` for no number."""
    given = os.environ.get("GWORLD_THREADS", "")
    if given:
        if not given.isdigit() or not 1 <= int(given) <= 1024:
            raise InputError(f"GWORLD_THREADS is {given!r}; a number from 1 to 1024 is needed.")
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def isa_number() -> int:
    """The place in `ISAS` of `GWORLD_ISA`; raises `InputError` for an unknown one."""
    name = os.environ.get("GWORLD_ISA", "auto")
    if name not in ISAS:
        raise InputError(f"GWORLD_ISA is {name!r}; one of {', '.join(ISAS)} is needed.")
    return ISAS.index(name)


def _folders() -> Iterator[Path]:
    if os.environ.get("GWORLD_NATIVE_DIR"):
        yield Path(os.environ["GWORLD_NATIVE_DIR"])
    yield Path(__file__).resolve().parent
    try:
        for file in metadata.files("gworld") or []:
            if file.name.startswith("libgworld_"):
                yield Path(str(file.locate())).parent
    except metadata.PackageNotFoundError:
        return


@lru_cache(maxsize=8)
def _load(kind: str, folders: tuple[Path, ...]) -> ctypes.CDLL:
    name = f"libgworld_{kind}.so"
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        way_out = "a C++ compiler" if kind == "cpu" else "nvcc"
        raise MissingBackendError(
            f"the native renderer {name} is not installed. Reinstall gworld where {way_out} is present, or use backend "
            "reference."
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingBackendError(f"`{path}` cannot be loaded ({error}). Reinstall gworld on this machine.") from error
    if not hasattr(library, "gw_abi_version") or library.gw_abi_version() != ABI_VERSION:
        raise MissingBackendError(f"`{path}` is of another version of gworld. Reinstall gworld on this machine.")
    return library
