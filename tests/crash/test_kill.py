"""Killed at any moment, a writer leaves what stood there before, or the whole new thing."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from gworld.checkpoint import latest_checkpoint, load_checkpoint

CHECKPOINTS = """
import sys, torch
from gworld.checkpoint import Checkpoint, save_checkpoint
print("ready", flush=True)
for step in range(1, 100_000):
    save_checkpoint(sys.argv[1], Checkpoint(step, {"w": torch.full((200_000,), float(step))}), keep=2)
"""

PLY = """
import sys, numpy as np
from gworld.formats.ply import write_ply
from tests.tables import random_table
table = random_table(count=20_000)
print("ready", flush=True)
while True:
    write_ply(table, sys.argv[1])
"""


def killed_after(code: str, argument: Path, seconds: float) -> None:
    """Start a writer, let it loop for some time after it is ready, and kill it with no warning."""
    writer = subprocess.Popen([sys.executable, "-c", code, str(argument)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    time.sleep(seconds)
    writer.kill()
    writer.wait()
    writer.stdout.close()


def test_checkpoints_survive_kill(tmp_path: Path) -> None:
    rng = random.Random(0)
    newest = 0
    for _ in range(6):
        killed_after(CHECKPOINTS, tmp_path, rng.uniform(0.05, 0.3))
        folder = latest_checkpoint(tmp_path)
        assert folder is not None
        loaded = load_checkpoint(folder)
        assert (loaded.tensors["w"] == loaded.step).all()
        newest = max(newest, loaded.step)
    assert newest > 1
    left = [entry.name for entry in (tmp_path / "checkpoints").iterdir() if entry.name.startswith(".")]
    assert len(left) <= 2  # what the last kill left; the next save sweeps it


def test_files_survive_kill(tmp_path: Path) -> None:
    from gworld.formats.ply import read_ply

    rng = random.Random(1)
    for _ in range(5):
        killed_after(PLY, tmp_path / "a.ply", rng.uniform(0.05, 0.2))
        if (tmp_path / "a.ply").exists():
            assert len(read_ply(tmp_path / "a.ply")) == 20_000
    assert (tmp_path / "a.ply").exists()
