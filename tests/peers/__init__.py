"""Other people's readers and validators, run as programs; tests skip where node or a package is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = Path(os.environ.get("GWORLD_PEERS", ROOT / ".venv" / "peers")) / "node_modules"

_VALIDATE = """
const validator = require(process.argv[1]);
const fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])), {maxIssues: 1000})
  .then((report) => console.log(JSON.stringify(report)));
"""


def _package(name: str) -> Path:
    if shutil.which("node") is None:
        pytest.skip("node is not installed; `apt-get install nodejs npm`, then `make peers`")
    folder = MODULES / name
    if not folder.is_dir():
        pytest.skip(f"the npm package {name} is not at {folder}; run `make peers`")
    return folder


def splat_transform(*arguments: str | Path) -> str:
    """Run PlayCanvas' splat-transform without a GPU and return what it printed; fails the test if it fails."""
    program = _package("@playcanvas/splat-transform") / "bin" / "cli.mjs"
    command = ["node", str(program), "-g", "cpu", "-w", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"splat-transform refused: {done.stdout}{done.stderr}"
    return done.stdout


def read_csv(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file that splat-transform wrote (values as in a 3DGS PLY: rot_0 is the real part)."""
    with open(path, encoding="utf-8") as lines:
        names = lines.readline().strip().split(",")
        values = np.loadtxt(lines, delimiter=",", ndmin=2)
    return {name: values[:, column] for column, name in enumerate(names)}


def validate_gltf(path: Path) -> dict:
    """The Khronos validator's report on a GLB file."""
    done = subprocess.run(
        ["node", "-e", _VALIDATE, str(_package("gltf-validator")), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout)
