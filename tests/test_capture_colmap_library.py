"""A library must not take the program's signals away."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, signal, sys, time
from gworld.capture.colmap_library import load_pycolmap
def leave(*_):
    print("cleaned up")
    sys.exit(7)
signal.signal(signal.SIGTERM, leave)
assert load_pycolmap().__name__ == "pycolmap"
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)
"""


def test_sigterm_is_still_the_programs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == "cleaned up" and "stack trace" not in done.stderr
