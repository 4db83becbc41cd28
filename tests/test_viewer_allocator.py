"""The allocator of the viewer's process gives memory back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from gworld.viewer import allocator

HOLES = """
import sys
from pathlib import Path
from gworld.viewer.allocator import give_back, hold_little

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert hold_little()
before = resident()
blocks = [bytearray(100_000) for _ in range(600)]
kept = blocks[::20] + [blocks[-1]]  # one in twenty stays, the last too: the heap cannot simply end earlier
del blocks
held = resident() - before
assert give_back()
print(held, resident() - before, len(kept))
"""


def test_pages_between_what_is_in_use_are_given_back() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    told = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    held, left, kept = map(int, told.stdout.split())
    assert held > 50_000_000
    assert left < kept * 100_000 + 5_000_000


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_c_library", lambda: None)
    assert not allocator.hold_little()
    assert not allocator.give_back()
