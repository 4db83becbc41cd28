"""Memory of a server whose visitors come and go: the C library is told to give it back to the system.

Every visitor is sent the splats as one block. Left alone, glibc keeps such blocks for later and fills a heap of its own
for every thread: 64 visitors at once take 0.9 GB, and 0.4 GB when each large block is mapped by itself. What is left
after them are pages of the one heap on which nothing is in use, some 2 MB a round, until they are asked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from functools import cache
from typing import Any

MMAP_THRESHOLD, ARENA_MAX = -3, -8
"""Names of `mallopt(3)` for its parameters."""
LARGE = 1 << 20
"""Bytes from which a block is mapped by itself and given back as soon as it is freed."""


def hold_little() -> bool:
    """Have large blocks mapped one by one and all threads share one heap; False where the C library is not glibc."""
    return _call("mallopt", MMAP_THRESHOLD, LARGE) and _call("mallopt", ARENA_MAX, 1)


def give_back() -> bool:
    """Let go of objects in circles and of pages without anything in use; False where the C library is not glibc."""
    gc.collect()
    return _call("malloc_trim", 0)


def _call(name: str, *values: int) -> bool:
    """Call a function of glibc; what it answers says whether anything came of it, which is not asked."""
    with contextlib.suppress(AttributeError, TypeError):  # another C library
        getattr(_c_library(), name)(*map(ctypes.c_int, values))
        return True
    return False


@cache
def _c_library() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
