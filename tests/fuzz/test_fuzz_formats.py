"""2,000 mutants of each format: a sound table or a `GWorldError`; no hang, no memory beyond 64 MB + 4 x file."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gworld.errors import InputError
from gworld.formats.splat import read_splat
from gworld.formats.table import SplatTable
from tests.fuzz.mutants import TRUNCATIONS, mutate
from tests.fuzz.run import run_one
from tests.fuzz.shells import SHELLS, gzip_bomb, zip_with_bomb, zstd_bomb
from tests.fuzz.targets import TARGETS, Target, small_table

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = int(os.environ.get("GWORLD_FUZZ", "2000"))


linux = pytest.mark.skipif(sys.platform != "linux", reason="address space is limited through Linux's /proc")


@linux
@pytest.mark.parametrize("name", TARGETS)
def test_mutants_are_read_or_refused(name: str) -> None:
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


@dataclass(frozen=True)
class _Misbehaving(Target):
    """A reader that does what a reader must not do."""

    deed: Callable[[Path], Any] = read_splat

    def read(self, path: Path) -> Any:
        return self.deed(path)


def _refuse(path: Path) -> None:
    raise InputError(f"`{path}` is damaged. Export it again.")


def _spin(path: Path) -> None:
    while True:
        pass


def _not_finite(path: Path) -> SplatTable:
    table = small_table()
    table.sh[7] = np.nan
    return table


def _ask_for_much(path: Path) -> np.ndarray:
    """1 GiB: no hole that earlier tests left in the heap is as large, so this always asks the system."""
    return np.ones(1 << 30, np.uint8)


DEEDS: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "reads": (lambda path: small_table(), None),
    "refuses": (_refuse, ""),
    "foreign": (lambda path: {}["x"], "KeyError"),
    "memory": (_ask_for_much, "MemoryError"),
    "hang": (_spin, "_TooSlow"),
    "not finite": (_not_finite, "column sh of Gaussian 7"),
    "writes": (lambda path: (path.parent.parent / "outside").write_bytes(b""), "wrote or removed"),
    "nothing": (lambda path: None, "AttributeError"),
}


@linux
@pytest.mark.parametrize("deed", DEEDS)
def test_the_harness_notices(tmp_path: Path, deed: str) -> None:
    act, message = DEEDS[deed]
    (tmp_path / "inside").mkdir()
    target = _Misbehaving("splat", "case.splat", small_table, deed=act)
    outcome = run_one(target, tmp_path, {"case.splat": b"anything"})
    assert outcome == message or (message and outcome and message in outcome)


def test_mutants_are_made_from_their_number_alone() -> None:
    parts = {"a.bin": bytes(range(256)) * 8, "b.txt": b"count 12\n1 2 3\n" * 50}
    for number in (0, 511, 512, 777, 1999):
        assert mutate(parts, number, None) == mutate(parts, number, None)
    cuts = {(name, len(part)) for n in range(TRUNCATIONS) for name, part in mutate(parts, n, None).items()}
    assert {("a.bin", size) for size in range(256)} | {("b.txt", size) for size in range(256)} <= cuts
    changed = [mutate(parts, number, None) != parts for number in range(TRUNCATIONS, 2000)]
    assert np.mean(changed) > 0.95
    assert len({str(mutate(parts, number, None)) for number in range(TRUNCATIONS, 2000)}) > 1200


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.shell])
def test_shells_open_and_close(tmp_path: Path, name: str) -> None:
    target = TARGETS[name]
    path = tmp_path / target.name
    target.write(path)
    shell, before = SHELLS[target.shell or ""], target.read(path)
    path.write_bytes(shell.close(shell.open(path.read_bytes())))
    after = target.read(path)
    if isinstance(before, tuple):  # episodes
        assert len(before) == len(after) > 0
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.times, other.times) and one.actions.keys() == other.actions.keys()
            assert all(torch.equal(one.actions[agent], other.actions[agent]) for agent in one.actions)
    else:
        assert np.array_equal(before.means, after.means) and np.array_equal(before.sh, after.sh)


def test_bombs_go_off_where_nothing_stops_them() -> None:
    """A container attack that no reader could fall for would test nothing."""
    packer = io.BytesIO()
    with zipfile.ZipFile(packer, "w") as archive:
        for name in ("meta.json", "means.webp", "quats.webp"):
            archive.writestr(name, b"content " * 40)
    for lie, size in ((False, 1 << 28), (True, 1000)):
        members = [(zipfile.ZipInfo(name), content) for name, content in SHELLS["zip"].open(packer.getvalue()).items()]
        with zipfile.ZipFile(io.BytesIO(zip_with_bomb(members, 1, lie=lie))) as archive:
            assert [info.file_size for info in archive.infolist()] == [320, size, 320]
            assert archive.read("quats.webp") == b"content " * 40
            if not lie:
                assert len(archive.open("means.webp").read(1 << 20)) == 1 << 20
    assert len(zlib.decompressobj(31).decompress(gzip_bomb(), 1 << 24)) == 1 << 24
    for claims in (True, False):
        zstandard = pytest.importorskip("zstandard")
        assert zstandard.frame_content_size(zstd_bomb(claims)) == (1 << 28 if claims else -1)
        assert len(zstandard.ZstdDecompressor().stream_reader(zstd_bomb(claims)).read(1 << 24)) == 1 << 24
