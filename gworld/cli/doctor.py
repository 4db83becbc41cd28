"""`gworld doctor`: one line per backend and component: ok, or why not and the one command that mends it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from dataclasses import asdict, dataclass

from gworld import __version__
from gworld.cli.options import print_json, say
from gworld.files import available_memory

EXTRAS = {
    "mesh": ("open3d",),
    "sim": ("mujoco", "gymnasium", "gym_aloha", "pettingzoo"),
    "refine": ("diffusers", "transformers", "accelerate"),
    "data": ("pyarrow", "h5py"),
    "cluster": ("ray", "pandas"),
    "metrics": ("torchmetrics", "skimage"),
    "rerun": ("rerun",),
    "usd": ("pxr",),
}
PEERS = {
    "pytorch3d": 'pip install --no-build-isolation "git+https://github.com/facebookresearch/pytorch3d"',
    "nerfstudio": "pip install --no-deps nerfstudio==1.1.5",
}


@dataclass(frozen=True)
class Options:
    """How to print."""

    json: bool = False
    """Print one JSON object on stdout instead of lines for people."""


@dataclass(frozen=True)
class Finding:
    """One component: usable or not, what is there or why not, and the command that mends it."""

    name: str
    ok: bool
    fact: str
    mend: str = ""


def run(options: Options) -> None:
    """Print what works here; the exit code is 0 whatever it finds."""
    findings = examine()
    if options.json:
        print_json({"version": __version__, "findings": [asdict(finding) for finding in findings]})
        return
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mend = f"; {finding.mend}" if finding.mend and not finding.ok else ""
        say(f"  {'ok' if finding.ok else '--'}  {finding.name:<{width}}  {finding.fact}{mend}")


def examine() -> list[Finding]:
    """Look at this machine, the backends and every optional component."""
    findings = [_machine(), _python(), _torch(), *_backends(), _video()]
    findings += [_extra(name, packages) for name, packages in EXTRAS.items()]
    findings += [_peer(name, mend) for name, mend in PEERS.items()]
    return findings


def _machine() -> Finding:
    import os

    memory = available_memory()
    free = shutil.disk_usage(".").free
    memory_text = "unknown" if memory is None else f"{memory / 1e9:.1f} GB"
    fact = f"{platform.machine()}, {os.cpu_count()} cores, {memory_text} memory and {free / 1e9:.0f} GB disk free"
    return Finding("machine", True, fact)


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 10), f"{platform.python_version()}, gworld {__version__}")


def _torch() -> Finding:
    import torch

    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("torch", True, f"{torch.__version__}, {', '.join(devices) or 'no CUDA device'}")


def _backends() -> list[Finding]:
    from gworld.render.select import backend_status

    return [Finding(f"render {name}", ok, why.rstrip(".")) for name, ok, why in backend_status()]


def _video() -> Finding:
    try:
        import av

        av.codec.Codec("libx264", "w")
    except (ImportError, ValueError) as error:
        return Finding("video", False, f"H.264 encoding is missing ({error})", "pip install --upgrade av")
    return Finding("video", True, f"PyAV {av.__version__} with libx264")


def _extra(name: str, packages: tuple[str, ...]) -> Finding:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return Finding(f"extra {name}", False, f"without {', '.join(missing)}", f'pip install "gworld[{name}]"')
    return Finding(f"extra {name}", True, ", ".join(packages))


def _peer(name: str, mend: str) -> Finding:
    if importlib.util.find_spec(name) is None:
        return Finding(f"peer {name}", False, "not installed (only needed to exchange cameras and point clouds)", mend)
    return Finding(f"peer {name}", True, importlib.metadata.version(name))
