"""Running a rasteriser given as C++ sources (`--peer DIR` with protof.cpp and bwd2.cpp) beside ours, in turns."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gworld.bench.splats import Scene
from gworld.errors import MissingBackendError
from gworld.geometry import invert_transform
from gworld.scene.harmonics import rgb_from_sh

FLAGS = {
    "avx512": ["-march=native"],
    "avx2": ["-march=native", "-mno-avx512f", "-mno-avx512vl", "-mno-avx512bw", "-mno-avx512dq"],
}


@dataclass(frozen=True)
class Prototype:
    """The compiled peer and the scene file it reads (without its .bin ending)."""

    folder: Path
    scene: Path

    def forward_ms(self, scale: int, threads: int, isa: str) -> float:
        """Least wall time of a forward pass of camera 0, in milliseconds."""
        out = self._run(f"protof_{isa}", [str(scale), str(threads), "12", "0"])
        return float(re.findall(r"cam0 .*wall med [\d.]+ min ([\d.]+)", out)[0])

    def forward_backward_ms(self, scale: int, threads: int) -> float:
        """Least wall time of a forward pass and the rasteriser's backward pass, in milliseconds."""
        return float(
            re.findall(r"total wall min ([\d.]+)", self._run("bwd2_avx512", [str(scale), str(threads), "12"]))[0]
        )

    def _run(self, program: str, arguments: list[str]) -> str:
        import os

        command = [str(self.folder / program), str(self.scene), *arguments]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.folder, env=environment)
        return done.stdout


def build_prototype(sources: Path, scene: Scene, folder: Path) -> Prototype:
    """Compile the peer's sources and write the scene in its format; colours are SH degree 0 (it knows no more)."""
    for name, isa in (("protof", "avx512"), ("protof", "avx2"), ("bwd2", "avx512")):
        target = folder / f"{name}_{isa}"
        command = ["g++", "-O3", "-std=c++17", "-ffast-math", "-fopenmp", *FLAGS[isa], str(sources / f"{name}.cpp")]
        done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise MissingBackendError(f"the peer {sources / name}.cpp does not compile: {done.stderr[:200]}")
    write_scene(scene, folder / "scene.bin")
    return Prototype(folder, folder / "scene")


def write_scene(scene: Scene, path: Path) -> None:
    """The peer's file: counts, then float32 columns, view matrices and intrinsics."""
    g = scene.gaussians
    columns = [
        g.means,
        torch.nn.functional.normalize(g.quats_wxyz, dim=-1),
        g.log_scales.exp(),
        torch.sigmoid(g.opacity_logits),
        rgb_from_sh(g.sh[:, 0]).clamp_min(0),
    ]
    views = invert_transform(scene.cameras.world_from_camera)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<i", len(g)))
        for column in columns:
            stream.write(np.ascontiguousarray(column.numpy(), np.float32).tobytes())
        stream.write(struct.pack("<i", len(views)))
        stream.write(views.float().numpy().tobytes() + scene.cameras.K.float().numpy().tobytes())
