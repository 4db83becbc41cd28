"""Generating episodes: how many an hour by one worker and by two, here and by Ray; killed ones cost nothing."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gworld.bench.catalogue import BenchInput
from gworld.bench.recorded import FPS, open_recorded, shipped_dynamics
from gworld.bench.rows import Row, at_most
from gworld.data.store import open_episodes, read_episode
from gworld.errors import InputError
from gworld.formats.world import save_world

EPISODES, SECONDS = 6, 4.0
POLICY = "random:2,extreme:2,expert:1,adversarial:1"
TOKEN = "GWORLD_BENCH_TOKEN"
"""Environment variable by which a run's own workers are known."""


@dataclass(frozen=True)
class Way:
    """How a store is made: the options of `gworld generate`, and after how many episodes a worker is killed each."""

    name: str
    options: tuple[str, ...] = ()
    kills: tuple[float, ...] = ()


RAY = ("--backend", "ray", "--address", "local", "--workers", "2")
WAYS = (
    Way("one worker"),
    Way("two workers", ("--workers", "2")),
    Way("two workers, two killed", ("--workers", "2"), (0.2, 0.6)),
    Way("two Ray workers", RAY),
    Way("two Ray workers, two killed", RAY, (0.2, 0.6)),
)


@dataclass(frozen=True)
class Outcome:
    """Seconds of a run without its start, digests of its episodes by number, how many came twice, workers killed."""

    seconds: float
    digests: dict[int, str]
    doubled: int
    killed: int


def rows(given: BenchInput) -> Iterator[Row]:
    """Episodes an hour and what differs from one worker's store, for each way; Ray's where it is installed."""
    count, seconds = (3, 0.5) if given.quick else (EPISODES, SECONDS)
    first: Outcome | None = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recorded = open_recorded("push", folder / "models", width=64)
        recorded.simulation.close()
        save_world(recorded.world, folder / "world")
        for number, way in enumerate(WAYS[:2] if given.quick else WAYS):
            if "ray" in way.options and importlib.util.find_spec("ray") is None:
                yield Row(way.name, float("nan"), "episodes/h", note="Ray is not installed")
                continue
            made = run_way(way, folder / "world", folder / f"made-{number}", count, seconds, given.seed)
            first = first or made
            note = f"{count} episodes of {seconds:g} s, {made.seconds:.0f} s" + f"; {made.killed} killed" * bool(
                way.kills
            )
            baseline = None if made is first else 3600 * count / first.seconds
            yield Row(way.name, 3600 * count / made.seconds, "episodes/h", "", baseline, None, note)
            lost = len(set(range(count)) - set(made.digests)) + made.doubled
            yield at_most(f"{way.name}: lost or doubled", lost, "episodes", 0)
            if made is not first:
                other = sum(made.digests.get(k) != digest for k, digest in first.digests.items())
                yield at_most(f"{way.name}: other than by one worker, by any bit", other, "episodes", 0)


def run_way(way: Way, world: Path, out: Path, count: int, seconds: float, seed: int) -> Outcome:
    """Make a store by the command itself, its workers killed on the way; raises `InputError` where the run fails."""
    model = shipped_dynamics("push")
    command = [sys.executable, "-m", "gworld", "generate", "--world", str(world), "--out", str(out), "--json"]
    command += ["--episodes", str(count), "--seconds", str(seconds), "--rate", str(FPS), "--seed", str(seed)]
    command += ["--policy", POLICY, "--round", "6", *way.options]
    command += ["--dynamics", str(model)] if model is not None else []
    token = uuid.uuid4().hex
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part), TOKEN: token}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    killed = 0
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complained:
        process = subprocess.Popen(command, stdout=said, stderr=complained, env=environment)
        while process.poll() is None:
            if killed < len(way.kills) and _done(out) >= way.kills[killed] * count:
                killed += _kill_one(token)
            time.sleep(0.05)
        said.seek(0)
        complained.seek(0)
        if process.returncode:
            raise InputError(f"`gworld generate` ended with {process.returncode}: {complained.read()[-300:].strip()}")
        facts = json.loads(said.read())
    store = open_episodes(out)
    numbers = [int(entry.key.rpartition(" ")[2]) for entry in store.entries]
    digests = {number: _digest(out, index) for index, number in enumerate(numbers)}
    return Outcome(float(facts["seconds"]), digests, len(numbers) - len(digests), killed)


def _digest(out: Path, index: int) -> str:
    """A name for all the numbers of an episode."""
    episode, digest = read_episode(open_episodes(out), index), hashlib.sha256()
    tables = {"poses": episode.link_poses, "times": episode.times, **episode.signals}
    tables |= {f"actions/{name}": table for name, table in episode.actions.items()}
    tables |= {f"joints/{name}": table for name, table in episode.joints.items()}
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(b"" if table is None else torch.as_tensor(table).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _done(out: Path) -> int:
    """Episodes that are in a store so far."""
    index = out / "index.jsonl"
    return index.read_text(encoding="utf-8").count("\n") if index.exists() else 0


def _kill_one(token: str) -> int:
    """Kill one process that makes episodes for the run with this token: 1, or 0 where none is found."""
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if not place.name.isdigit() or token.encode() not in (place / "environ").read_bytes():
                continue
            words = (place / "cmdline").read_bytes()
            parent = Path("/proc") / (place / "stat").read_text().rpartition(")")[2].split()[1]
            forked = b"forkserver" in words and b"forkserver" in (parent / "cmdline").read_bytes()
            if forked or words.startswith(b"ray::make_remotely"):
                os.kill(int(place.name), signal.SIGKILL)
                return 1
    return 0
