"""2,000 mutants of each format: a sound table or a `GWorldError`; no hang, no memory beyond 64 MB + 4 x file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = int(os.environ.get("GWORLD_FUZZ", "2000"))


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited through Linux's /proc")
@pytest.mark.parametrize("name", TARGETS)
def test_mutants_are_read_or_refused(name: str) -> None:
    if not TARGETS[name].available:
        pytest.skip(f"gworld.formats.{TARGETS[name].module} is not there")
    command = [sys.executable, "-m", "tests.fuzz.run", name, "--count", str(COUNT)]
    # One arena: each further one of the C library's takes 64 MB of address space.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    lines = done.stderr.strip().splitlines()
    assert done.stdout, f"{name}: the process died (status {done.returncode}) at mutant {' '.join(lines[-3:])}"
    report = json.loads(done.stdout)
    assert report["count"] == COUNT
    assert report["refused"] > COUNT // 10, "hardly any mutant was refused; are they mutants?"
    shown = "\n".join(
        f"  python -m tests.fuzz.run {name} {number}  # {what}" for number, what in report["failures"][:20]
    )
    assert not report["failures"], f"{len(report['failures'])} of {COUNT} mutants of {name} fail:\n{shown}"
