"""Shared fixtures: where real recordings lie, small generated scenes, jaxtyping checked at run time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 - the hook below finds it by name

# Every public signature's shapes are checked while the tests run; in use they cost nothing.
# (Not the command line's: its options hold placeholders while they are parsed.)
CHECKED = (
    "agents", "bench", "capture", "checkpoint", "config", "data", "dynamics", "evaluate", "files", "formats",
    "geometry", "reconstruct", "refine", "render", "runlog", "scene", "simulate", "verbs", "viewer",
)  # fmt: skip
_HOOK = install_import_hook([f"gworld.{room}" for room in CHECKED], "tests.typecheck.check")

# Several test processes share the cores; OpenMP threads that spin for each other only slow them down.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """The folder of real recordings: `GWORLD_DATA`, or `shared/data` beside the checkout."""
    return Path(os.environ.get("GWORLD_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def real_data() -> Path:
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}; set GWORLD_DATA")
    return folder
