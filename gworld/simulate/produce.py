"""Episodes by the thousand: planned by number, made by any workers in any order, kept in the order of their numbers.

An episode is made into a folder of its own below `OUT/.parts`, renamed when it is whole, and entered into the store
when its number is next. What is planned for a round of numbers depends on the episodes of earlier rounds alone. So the
store is the same for any number of workers, whichever of them die, and however often the run is cut off and gone on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from gworld.data.record import load_record, save_record
from gworld.data.store import EpisodeWriter, open_episodes, read_episode
from gworld.errors import GWorldError, InputError, UsageError
from gworld.geometry import transform_from_pose
from gworld.scene.episode import Episode
from gworld.simulate.cast import GOLDEN
from gworld.simulate.demos import Material, cut_material
from gworld.simulate.diversity import Gauge, Tally, cells_of, empty_spots, make_gauge
from gworld.simulate.film import film_cameras, film_poses
from gworld.simulate.generate import Job, Made, Maker, Recipe, episode_key, recipe_digest

PARTS = ".parts"
HARDEST = 0.25
"""The part of the episodes so far, the hardest ones, from which hard cases are taken."""
BEFORE = 0.5
"""Seconds before the hardest moment at which a hard case begins."""


@dataclass(frozen=True)
class Plan:
    """Which episodes are made, besides what is in each of them."""

    episodes: int = 100
    demos: Path | None = None
    """A store of demonstrations; a share of the episodes begins from moments of them, disturbed."""
    demo_share: float = 0.3
    hard_share: float = 0.1
    spread: bool = True
    """Begin where objects have not been so far."""
    round: int = 32
    """Episodes planned at once, from what came before them."""

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        if self.episodes < 1 or self.round < 1:
            raise UsageError(f"{self.episodes} episodes in rounds of {self.round} were asked for; 1 is the least.")
        if not (0 <= self.demo_share <= 1 and 0 <= self.hard_share <= 1 and self.demo_share + self.hard_share <= 1):
            raise UsageError(f"shares of {self.demo_share} and {self.hard_share} were asked for; 0 to 1 in all fit.")


@runtime_checkable
class Backend(Protocol):
    """Who makes episodes: `run` yields each job's number and the folder of its episode, or why there is none."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Path | GWorldError]]:
        """Make the jobs, in any order; every one is answered for once."""


@dataclass
class Produced:
    """What a run came to."""

    added: int = 0
    skipped: int = 0
    steps: int = 0
    attempts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failed: dict[int, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    @property
    def acceptance(self) -> float:
        """Episodes kept over attempts made."""
        kept = sum(self.kinds.values())
        return kept / self.attempts if self.attempts else 1.0


def produce(
    recipe: Recipe,
    plan: Plan,
    out: Path,
    backend: Backend,
    progress: Callable[[int], None] = lambda done: None,
) -> Produced:
    """Make episodes 0 .. `plan.episodes` - 1 that are not in the store yet.

    Raises `InputError` when the store holds other episodes, and, after everything else is made, when some could not be.
    """
    digest, found = recipe_digest(recipe), Produced()
    maker = Maker(recipe, out / PARTS / "plan")
    gauge, demos = make_gauge(maker.world, maker.clearance), _demos(plan)
    with EpisodeWriter(out) as writer:
        strange = [entry.key for entry in writer.entries if not entry.key.startswith(f"generate {digest} ")]
        if strange:
            raise UsageError(
                f"`{out}` holds episodes made in another way (`{strange[0] or 'recorded'}`); what is generated now "
                "differs from it. Choose another `--out`, or the options of before."
            )
        _sweep(out / PARTS)
        cells = {int(entry.key.rpartition(" ")[2]): index for index, entry in enumerate(writer.entries)}
        for first in range(0, plan.episodes, plan.round):
            numbers = range(first, min(first + plan.round, plan.episodes))
            earlier = [cells[number] for number in sorted(cells) if number < first]
            missing = [number for number in numbers if number not in cells]
            spots = empty_spots(found.tally, gauge) if plan.spread and recipe.start.objects == 1.0 else []
            jobs = _jobs(recipe, plan, missing, out, earlier, demos, spots) if missing else []
            for number in set(numbers) - set(missing):
                found.skipped += 1
                _count(found, read_episode(open_episodes(out), cells[number]), gauge)
            for number, episode in _ordered(backend.run(jobs), missing, found):
                cells[number] = _enter(writer, episode, episode_key(digest, number))
                found.added, found.steps = found.added + 1, found.steps + len(episode)
                _count(found, episode, gauge)
                progress(found.added + found.skipped)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    if found.failed:
        _, reason = min(found.failed.items())
        raise InputError(
            f"{len(found.failed)} of {plan.episodes} episodes could not be made; number {number}: {reason}"
        )
    return found


def make_part(maker: Maker, job: Job, parts: Path) -> Path:
    """Make one episode, film it where the recipe says so, and put it, whole, into its folder below `parts`."""
    place = parts / f"episode-{job.number:08d}"
    if place.is_dir():
        return place  # made by a worker whose answer was lost
    with tempfile.TemporaryDirectory(prefix=".making-", dir=parts) as temporary:
        made, folder = maker.make(job), Path(temporary) / "episode"
        folder.mkdir()
        save_record(_with_films(made, maker.recipe, folder), folder)
        try:
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # else another worker made the same episode meanwhile
                raise
    return place


def _with_films(made: Made, recipe: Recipe, folder: Path) -> Episode:
    episode = made.episode
    if not recipe.video or episode.link_poses is None:
        return episode
    cameras = film_cameras(made.world, recipe.cameras, recipe.width)
    poses = transform_from_pose(episode.link_poses)
    videos = film_poses(made.world, poses, episode.times, folder, cameras, recipe.labels)
    return replace(episode, videos=videos, cameras=cameras)


def _jobs(
    recipe: Recipe, plan: Plan, numbers: Sequence[int], out: Path, earlier: Sequence[int],
    demos: Sequence[Episode], spots: Sequence[tuple[float, float]],
) -> list[Job]:  # fmt: skip
    """What the episodes of one round are to be, from their numbers and the episodes of earlier rounds."""
    hard = _hard_cases(out, earlier) if earlier and plan.hard_share else []
    jobs = []
    for number in numbers:
        rng = np.random.default_rng([recipe.seed, number, 7])
        place = (number * GOLDEN + 0.5) % 1.0
        if hard and place < plan.hard_share:
            jobs.append(Job(number, "hard", None, hard[int(rng.integers(len(hard)))]))
        elif demos and place > 1.0 - plan.demo_share:
            chosen = int(rng.integers(len(demos)))
            start = int(rng.integers(max(1, len(demos[chosen]) // 2)))
            jobs.append(Job(number, "demo", None, cut_material(demos[chosen], start, f"demonstration {chosen}")))
        else:
            spot = spots[int(rng.integers(len(spots)))] if spots and number % 2 else None
            jobs.append(Job(number, "policy", spot))
    return jobs


def _hard_cases(out: Path, earlier: Sequence[int]) -> list[Material]:
    """Moments before runs grew apart most, or a task was missed, of the hardest episodes that began by themselves."""
    store = open_episodes(out)
    scored = []
    for index in earlier:
        origin = read_episode(store, index).origin
        if origin.get("kind") == "policy":
            missed = store.entries[index].success is False
            scored.append((float(origin["figures"].get("doubt", 0.0)) * (2.0 if missed else 1.0), -index))
    chosen = sorted(scored, reverse=True)[: max(1, int(HARDEST * len(scored)))] if scored else []
    cases = []
    for _, index in chosen:
        episode = read_episode(store, -index)
        step = float(episode.times[1] - episode.times[0])
        start = int(episode.origin["hardest"]) - round(BEFORE / step)
        seed = int(episode.origin["world_seed"])
        cases.append(cut_material(episode, start, f"episode {episode.origin['number']}", seed))
    return cases


def _demos(plan: Plan) -> list[Episode]:
    if plan.demos is None or not plan.demo_share:
        return []
    store = open_episodes(plan.demos)
    found = [read_episode(store, index) for index in range(min(len(store), 512))]
    if not found:
        raise InputError(f"`{plan.demos}` holds no finished episode to begin from.")
    return [episode for episode in found if episode.link_poses is not None and len(episode) >= 4]


def _ordered(
    answers: Iterator[tuple[int, Path | GWorldError]], numbers: Sequence[int], found: Produced
) -> Iterator[tuple[int, Episode]]:
    """Episodes in the order of their numbers, as soon as all before them are there."""
    waiting: dict[int, Path | GWorldError] = {}
    left = list(numbers)
    for number, answer in answers:
        waiting[number] = answer
        while left and left[0] in waiting:
            following = left.pop(0)
            ready = waiting.pop(following)
            if isinstance(ready, GWorldError):
                found.failed[following] = str(ready)
                continue
            yield following, load_record(ready)
            shutil.rmtree(ready, ignore_errors=True)


def _enter(writer: EpisodeWriter, episode: Episode, key: str) -> int:
    """Add an episode to the store; its films are linked, not copied, where the disk can do that."""
    scratch, videos = writer.scratch(), []
    for video in episode.videos:
        masks, depth = (None if file is None else _linked(file, scratch) for file in (video.masks, video.depth))
        videos.append(replace(video, path=_linked(video.path, scratch), masks=masks, depth=depth))
    writer.add(replace(episode, videos=tuple(videos)), key)
    return len(writer.entries) - 1


def _linked(file: Path, folder: Path) -> Path:
    target = folder / file.name
    with contextlib.suppress(OSError):
        os.link(file, target)
        return target
    shutil.copyfile(file, target)
    return target


def _count(found: Produced, episode: Episode, gauge: Gauge) -> None:
    origin = episode.origin
    found.attempts += int(origin.get("attempts", 1))
    found.rejected.update({str(name): int(count) for name, count in origin.get("rejected", {}).items()})
    found.kinds[str(origin.get("kind", ""))] += 1
    found.tally.add(cells_of(episode, gauge))


def _sweep(parts: Path) -> None:
    """Remove what killed workers left half made; whole episodes stay and are taken."""
    parts.mkdir(parents=True, exist_ok=True)
    for place in parts.iterdir():
        if not place.name.startswith("episode-"):
            shutil.rmtree(place, ignore_errors=True)
