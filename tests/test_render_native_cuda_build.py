"""The CUDA renderer as a library: what it says without a device, that it builds, that no threads of a block race."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gworld import native as loading
from gworld.errors import MissingBackendError
from gworld.render.native_cuda import native_cuda_status, render_native_cuda
from tests.scenes import front_camera, one_gaussian, random_gaussians
from tests.test_render_native_cuda import SOURCE, Emulated, build_emulated, pictures_and_gradients


def test_without_a_device_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "_folders", lambda: iter([tmp_path]))
    reason = native_cuda_status()
    assert reason is not None and "libgworld_cuda.so is not installed" in reason
    with pytest.raises(MissingBackendError, match="not installed"):
        render_native_cuda(one_gaussian(), torch.eye(4)[None, None], front_camera())


def save_small_run(library: str, path: str) -> None:
    """Pictures and gradients of a small scene by an emulated library, their bits written to a file."""
    results = pictures_and_gradients(
        Emulated(Path(library)), random_gaussians(3, 330, degree=2, links=3, size=0.06), 5, 1, (20, 34)
    )
    Path(path).write_bytes(b"".join(tensor.contiguous().numpy().tobytes() for tensor in results))


@pytest.mark.slow
def test_the_threads_of_a_block_race_nowhere(tmp_path: Path) -> None:
    """A block's threads as true threads under ThreadSanitizer: no warning, and the bits of the run by phases."""
    library, expected, found = tmp_path / "threads.so", tmp_path / "phases.pt", tmp_path / "threads.pt"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or "g++"
    flags = ["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-pthread", "-fsanitize=thread", "-DGW_EMULATED_THREADS"]
    command = [compiler, *flags, str(SOURCE / "cuda_emulated.cpp"), "-o", str(library)]
    if subprocess.run(command, capture_output=True, timeout=200, check=False).returncode != 0:
        pytest.skip("the compiler has no ThreadSanitizer for C++20")
    asked = [compiler, "-print-file-name=libtsan.so"]
    sanitizer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    save_small_run(str(build_emulated(tmp_path)), str(expected))
    code = "import sys; from tests.test_render_native_cuda_build import save_small_run; save_small_run(*sys.argv[1:])"
    log = tmp_path / "races"
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE.parent),
        "LD_PRELOAD": sanitizer,
        "TSAN_OPTIONS": f"exitcode=0 report_signal_unsafe=0 log_path={log}",
        "OMP_NUM_THREADS": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", code, str(library), str(found)],
        env=environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    if "unexpected memory mapping" in run.stderr:
        pytest.skip("ThreadSanitizer cannot run on this kernel's memory layout")
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.glob("races.*")), next(tmp_path.glob("races.*")).read_text()[:4000]
    assert found.read_bytes() == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, on which the kernels themselves are tested")
def test_the_library_builds_and_loads_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("nvcc", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path), "-DGWORLD_CUDA_ARCHITECTURES=90"]
    subprocess.run(configure, check=True, timeout=120, stdout=subprocess.DEVNULL)
    build = ["cmake", "--build", str(tmp_path), "--target", "gworld_cuda"]
    subprocess.run(build, check=True, timeout=250, stdout=subprocess.DEVNULL)
    monkeypatch.setattr(loading, "_folders", lambda: iter([tmp_path]))
    reason = native_cuda_status()
    assert reason is not None and reason.startswith("the CUDA renderer finds no device (")
    assert "backend native-cpu" in reason
    with pytest.raises(MissingBackendError, match="finds no device"):
        render_native_cuda(one_gaussian(), torch.eye(4)[None, None], front_camera())
