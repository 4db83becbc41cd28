"""nerfstudio 1.1.5 in a Python of its own: what its data parser makes of a folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PROBE = """
import json, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
try:
    import open3d
    points = True
except ImportError:
    points = False
config = NerfstudioDataParserConfig(data=Path(sys.argv[1]), orientation_method="none", center_method="none",
    auto_scale_poses=False, eval_mode="all", downscale_factor=1, load_3D_points=points)
parsed = config.setup().get_dataparser_outputs("train")
cameras, more = parsed.cameras, parsed.metadata
column = lambda name: getattr(cameras, name)[:, 0].tolist()
cloud = more.get("points3D_xyz")
print("RESULT" + json.dumps({
    "images": [str(path) for path in parsed.image_filenames],
    "masks": [str(path) for path in parsed.mask_filenames or []],
    "depths": [str(path) for path in more.get("depth_filenames") or []], "unit": more.get("depth_unit_scale_factor"),
    "c2w": cameras.camera_to_worlds.tolist(), "points": None if cloud is None else cloud.tolist(),
    **{name: column(name) for name in ("fx", "fy", "cx", "cy", "width", "height", "camera_type")}}))
"""


def nerfstudio_python() -> str:
    """A Python that has nerfstudio; skips the test without one."""
    given = os.environ.get("GWORLD_NERFSTUDIO_PYTHON")
    if given:
        return given
    if importlib.util.find_spec("nerfstudio") is None:
        pytest.skip("nerfstudio is not installed; set GWORLD_NERFSTUDIO_PYTHON to a Python that has nerfstudio 1.1.5")
    return sys.executable


def parse_folder(folder: Path) -> dict:
    """What nerfstudio's own data parser reads from a folder."""
    command = [nerfstudio_python(), "-c", _PROBE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.split("RESULT")[1])
