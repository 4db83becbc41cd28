"""Episodes made by a Ray cluster: the one place that knows Ray.

Workers on other machines see no disk of ours: the files that a recipe names travel once, into Ray's object store, and
each episode comes back as files. A worker that is lost costs the episode it had begun; Ray has it made again, and
since an episode is decided by its recipe and number, it comes out the same.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gworld.errors import GWorldError, MissingBackendError, ResourceError, UsageError
from gworld.files import safe_join
from gworld.simulate.generate import Job, Maker, Recipe
from gworld.simulate.produce import make_part

LARGEST = 1 << 30
"""Bytes, at most, of the recipe's files, and of one episode, as they travel."""
RETRIES = 5
AHEAD = 2
"""Episodes handed to each worker in advance."""

Files = dict[str, bytes]

_makers: dict[str, Maker] = {}


class RayWorkers:
    """`count` workers of a Ray cluster at `address`: `auto`, `local`, or where it listens."""

    def __init__(self, recipe: Recipe, parts: Path, count: int, address: str) -> None:
        self.parts, self.count = parts, count
        self._ray = _library()
        self._started = not self._ray.is_initialized()
        if self._started:
            local = address == "local"
            try:
                self._ray.init(
                    address=None if local else address,
                    num_cpus=count if local else None,
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UsageError(f"no Ray cluster answers at `{address}` ({reason}); start one, or `local`.") from error
        packed, files = pack_recipe(recipe)
        self._recipe, self._files = packed, self._ray.put(files)
        self._token = uuid.uuid4().hex
        self._make = self._ray.remote(num_cpus=1, max_retries=RETRIES)(make_remotely)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Path | GWorldError]]:
        """Make the jobs; whichever is done first comes first."""
        left = list(jobs)
        pending: dict[Any, int] = {}
        while left or pending:
            while left and len(pending) < AHEAD * self.count:
                job = left.pop(0)
                pending[self._make.remote(self._recipe, self._files, self._token, job)] = job.number
            done, _ = self._ray.wait(list(pending), num_returns=1)
            for reference in done:
                number = pending.pop(reference)
                yield number, self._take(reference, number)

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
        if self._started:
            self._ray.shutdown()

    def _take(self, reference: Any, number: int) -> Path | GWorldError:
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            return ResourceError(f"episode {number} was lost with its workers {RETRIES} times ({reason}).")
        if isinstance(answer, GWorldError):
            return answer
        place = self.parts / f"episode-{number:08d}"
        with tempfile.TemporaryDirectory(prefix=".coming-", dir=self.parts) as temporary:
            folder = Path(temporary) / "episode"
            unpack(answer, folder)
            shutil.rmtree(place, ignore_errors=True)
            folder.rename(place)
        return place


def make_remotely(recipe: Recipe, files: Files, token: str, job: Job) -> Files | GWorldError:
    """One episode as files, in a worker: the recipe's own files are laid out once per process and run."""
    import torch

    torch.set_num_threads(1)
    os.environ["GWORLD_THREADS"] = "1"
    try:
        if token not in _makers:
            _makers.clear()
            home = Path(tempfile.mkdtemp(prefix="gworld-"))
            unpack(files, home)
            _makers[token] = Maker(settle_recipe(recipe, home), home / "scratch")
        with tempfile.TemporaryDirectory() as parts:
            return read_files(make_part(_makers[token], job, Path(parts)), "the episode")
    except GWorldError as error:
        return error


def pack_recipe(recipe: Recipe) -> tuple[Recipe, Files]:
    """The recipe with its paths replaced by names, and the files of all that they name."""
    files: Files = {}
    names: dict[Path, Path] = {}

    def take(place: Path) -> Path:
        known = place.resolve()
        if known not in names:
            names[known] = Path(f"input-{len(names)}")
            found = read_files(known, f"`{place}`")
            files.update({f"{names[known]}/{name}": data for name, data in found.items()})
        return names[known]

    packed = _with_paths(recipe, take)
    size = sum(map(len, files.values()))
    if size > LARGEST:
        raise ResourceError(f"the worlds and dynamics have {size} bytes; {LARGEST} at most travel to a cluster.")
    return packed, files


def settle_recipe(recipe: Recipe, home: Path) -> Recipe:
    """The recipe with its names turned into the paths they were laid out at."""
    return _with_paths(recipe, lambda place: safe_join(home, place.as_posix()))


def read_files(folder: Path, what: str) -> Files:
    """All files below a folder by their names in it; raises `ResourceError` when they are too large to travel."""
    files: Files = {}
    size = 0
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            size += file.stat().st_size
            if size > LARGEST:
                raise ResourceError(f"{what} has more than {LARGEST} bytes, which is the most that travels.")
            files[file.relative_to(folder).as_posix()] = file.read_bytes()
    return files


def unpack(files: Files, folder: Path) -> None:
    """Lay files out below a folder; none can leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        target = safe_join(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            target.write_bytes(data)


def _with_paths(recipe: Recipe, turn: Any) -> Recipe:
    variation = recipe.variation
    add = tuple(replace(guest, world=turn(guest.world)) for guest in variation.add)
    background = replace(variation.background, worlds=tuple(map(turn, variation.background.worlds)))
    dynamics = tuple(map(turn, recipe.dynamics))
    varied = replace(variation, add=add, background=background)
    return replace(recipe, world=turn(recipe.world), dynamics=dynamics, variation=varied)


def _library() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingBackendError(
            f"a cluster needs Ray ({error}). Run `pip install 'gworld[cluster]'`, or leave `--backend ray` out."
        ) from error
    return ray
