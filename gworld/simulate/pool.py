"""Workers on this machine: processes of our own, each making one episode at a time; lost ones are replaced."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from gworld.errors import GWorldError, ResourceError
from gworld.simulate.generate import Job, Maker, Recipe
from gworld.simulate.produce import make_part

LOSSES = 3
"""How often workers may be lost over the same episode before it is given up."""

_maker: Maker | None = None


class Here:
    """Makes episodes in this process, one after the other, with one thread, as a worker would."""

    def __init__(self, recipe: Recipe, parts: Path) -> None:
        self.recipe, self.parts = recipe, parts
        self._maker: Maker | None = None

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Path | GWorldError]]:
        """Make the jobs in their order."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for job in jobs:
                self._maker = self._maker or Maker(self.recipe, self.parts / "worker")
                yield job.number, _answer(self._maker, job, self.parts)
        finally:
            torch.set_num_threads(threads)


class Workers:
    """A pool of `count` processes, kept between runs until `close`."""

    def __init__(self, recipe: Recipe, parts: Path, count: int = 2) -> None:
        self.recipe, self.parts, self.count = recipe, parts, count
        self._pool: ProcessPoolExecutor | None = None
        self._alive: Connection | None = None  # closes with this process; workers wait for that

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Path | GWorldError]]:
        """Make the jobs, whichever is done first coming first; what a lost worker had begun is made again."""
        left, losses = {job.number: job for job in jobs}, 0
        while left:
            before, pool = len(left), self._open()
            try:
                pending = {pool.submit(_work, job, self.parts): number for number, job in left.items()}
                for future in as_completed(pending):
                    answer = future.result()
                    left.pop(pending[future])
                    yield pending[future], answer
            except BrokenProcessPool:
                self.close()
                losses = losses + 1 if len(left) == before else 0
            if losses > LOSSES:
                for number in sorted(left):
                    yield number, ResourceError("every worker was lost over it; memory may be short. Take fewer.")
                return

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool, self._alive = None, None

    def _open(self) -> ProcessPoolExecutor:
        """The pool; processes fork from one that has everything imported, where the system can do that."""
        if self._pool is None:
            method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
            context = multiprocessing.get_context(method)
            if method == "forkserver":
                context.set_forkserver_preload(["gworld.simulate.pool"])
            ending, self._alive = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(self.count, context, _begin, (self.recipe, self.parts, ending))
        return self._pool


def _begin(recipe: Recipe, parts: Path, ending: Connection) -> None:
    """Set up a worker process: one thread, and an end when the process that wants its episodes has ended."""
    global _maker
    threading.Thread(target=_watch, args=(ending,), daemon=True).start()
    torch.set_num_threads(1)
    os.environ["GWORLD_THREADS"] = "1"
    _maker = Maker(recipe, parts / f"worker-{os.getpid()}")


def _watch(ending: Connection) -> None:
    """Wait for the end of the pipe, which comes however the other process ends; then end too."""
    with contextlib.suppress(EOFError, OSError):
        ending.recv_bytes()
    os._exit(1)


def _work(job: Job, parts: Path) -> Path | GWorldError:
    assert _maker is not None
    return _answer(_maker, job, parts)


def _answer(maker: Maker, job: Job, parts: Path) -> Path | GWorldError:
    try:
        return make_part(maker, job, parts)
    except GWorldError as error:
        return error
