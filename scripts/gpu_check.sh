#!/usr/bin/env bash
# Checks and measures the renderer on a machine with an NVIDIA GPU, and writes docs/benchmarks/render-gpu.md.
#
#   scripts/gpu_check.sh [FOLDER_OF_REAL_RECORDINGS]
#
# Needs nvcc 13 and cmake on the PATH and gworld's development environment: PYTHON=.venv/bin/python by default. It builds
# both native libraries for this GPU into BUILD (build/gpu), runs every render test on every backend, the memory and race
# checkers of compute-sanitizer on small scenes (where it is installed), and both benches. QUICK=1: a few minutes in all.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=$PWD/${BUILD:-build/gpu}
report=docs/benchmarks/render-gpu.md
[ $# -ge 1 ] && export GWORLD_DATA=$1

stop() {
  echo "gpu_check: $1" >&2
  exit 4
}
[ -x "$(command -v "$python")" ] || stop "there is no $python. Run \`make dev\`, or name an interpreter by PYTHON."
arch=$("$python" -c 'import torch
print("%d%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "")')
[ -n "$arch" ] || stop "this machine shows PyTorch no CUDA device. Run it on a machine with an NVIDIA GPU and a CUDA build of PyTorch."
for tool in nvcc cmake; do
  command -v $tool >/dev/null || stop "$tool is not on the PATH. Install it, or add it to the PATH."
done

echo "== build for sm_$arch"
cmake -S cuda_ext -B "$build" -DGWORLD_CUDA_ARCHITECTURES="$arch" -DCMAKE_CUDA_FLAGS=-lineinfo
cmake --build "$build" --parallel --target gworld_cpu gworld_cuda
export GWORLD_NATIVE_DIR=$build

echo "== render tests on all backends"
"$python" -m pytest tests/test_render_*.py -m gpu
"$python" -m pytest tests/test_render_*.py -m "not gpu"

if command -v compute-sanitizer >/dev/null; then
  small="two_runs or crowd or many_parts or culled"
  for tool in memcheck racecheck synccheck; do
    echo "== compute-sanitizer $tool"
    # torch keeps freed memory; without its cache an access past a buffer's end is seen.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $tool --error-exitcode 9 --kernel-regex kns=gw4cuda \
      "$python" -m pytest tests/test_render_native_cuda.py -m gpu -k "$small" -p no:cacheprovider -o timeout=0
  done
else
  echo "== compute-sanitizer is not on the PATH: memory and races were NOT checked" >&2
fi

echo "== benches"
quick=${QUICK:+--quick}
"$python" -m gworld bench render $quick
"$python" - "$report" ${QUICK:+quick} <<'PYTHON'
"""Write the table of gworld.bench.render_gpu, and where the time of one frame and one training step goes."""
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gworld import __version__
from gworld.bench import render_gpu
from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import machine, table_lines
from gworld.bench.splats import table
from gworld.files import atomic_write

quick = len(sys.argv) > 2
data = Path(os.environ["GWORLD_DATA"]) if "GWORLD_DATA" in os.environ else None
rows = []
for row in render_gpu.rows(BenchInput(data, None, 0, quick)):
    rows.append(row)
    print(table_lines([row])[2], flush=True)

scene = render_gpu._to_gpu(table(0.02 if quick else 0.00415))
leaves = [getattr(scene.gaussians, name).requires_grad_() for name in render_gpu.NAMES]
def step():
    picture = render_gpu.render_native_cuda(scene.gaussians, scene.poses, scene.cameras, ("rgb",)).rgb
    return torch.autograd.grad(picture.square().mean(), leaves)
step()
with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
    for _ in range(20):
        step()
    torch.cuda.synchronize()
stages = trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=16, max_name_column_width=70)

driver = subprocess.run(
    ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
).stdout.split("\n")[0]
head = [
    "# The renderer on a GPU", "",
    f"gworld {__version__} on {torch.cuda.get_device_name()} (driver {driver or 'unknown'}), PyTorch {torch.__version__}, "
    f"{machine()}{', quick' if quick else ''}.", "",
    "Written by `scripts/gpu_check.sh`; the baseline is gsplat's `rasterization()` in the same run.", "",
]
with atomic_write(Path(sys.argv[1]), "w") as stream:
    stream.write("\n".join([*head, *table_lines(rows), "", "## Where the time of 20 training steps goes", "", "```", stages, "```", ""]))
missed = [row.name for row in rows if row.ok is False]
print(f"wrote {sys.argv[1]}; goals missed: {'; '.join(missed) if missed else 'none'}")
PYTHON
