"""`gworld view`: look into a world in the browser, play what happened in it, drive its agents."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from gworld.cli.options import print_json, say
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.files import existing_file
from gworld.formats.table import Axes

if TYPE_CHECKING:
    import numpy as np

    from gworld.scene.episode import Episode
    from gworld.scene.rollout import Rollout
    from gworld.scene.world import World
    from gworld.viewer.app import Viewer
    from gworld.viewer.live import LiveViewer
    from gworld.viewer.pixels import Refine

MAX_EPISODES = 1000
Recordings = dict[str, "Callable[[], Rollout]"]


@dataclass(frozen=True)
class Options:
    """What to look at, and where the viewer listens."""

    source: Annotated[Path, tyro.conf.Positional]
    """A world, a run that holds one, any splat file, a rollout (.parquet), an episode or a store of them."""
    world: Path | None = None
    """The world that a rollout or episodes belong to; else one beside them, else links are shown as balls."""
    rollouts: tuple[Path, ...] = ()
    """Rollouts to play in the world, besides what SOURCE holds."""
    truth: Path | None = None
    """An episode whose film is shown beside the recordings, where they are none of a store."""
    actions: Path | None = None
    """Actions that agents can be set to replay: any file that `gworld simulate --actions` takes."""
    task: str = ""
    """What an expert is to do where one drives: a task that `gworld simulate --task` takes."""
    dynamics: Path | None = None
    """A dynamics run that moves the world; else the one bound to it, else kinematics only."""
    refiner: Path | None = None
    """A trained refiner for refined pictures; else the world's own, else the one shipped for all scenes."""
    source_axes: Axes | None = None
    """How a splat file's numbers are meant, where it does not say (y down by habit): RDF, RUB or RFU."""
    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs a token, which is made and printed."""
    port: int = 8080
    """Port to listen on, or the next free one; 0 takes any."""
    clients: int = 16
    """Browsers that may look in at once."""
    splats: int = 1_000_000
    """Splats that a browser gets; of more, some that are made larger stand for all."""
    rate: float = 30.0
    """Steps per second when agents are driven."""
    keep: Path = Path("driven")
    """Folder for recorded drives, films, camera paths and edited worlds."""
    follow: bool = False
    """Watch the run in SOURCE while it is made; so is a run that has no world yet."""
    export: Path | None = None
    """Write a page (.html) that plays the first recording without a server, or an animated .glb, and leave."""
    seconds: float | None = None
    """Close after this long; on Ctrl+C when not given."""
    overwrite: bool = False
    """Replace the page if it exists; save an edited world in place of the one in SOURCE."""
    json: bool = False
    """Print the address, or what was exported, as one JSON object on stdout."""


@dataclass(frozen=True)
class _Found:
    """A world and recordings of it, with one line on where the world is from."""

    world: World
    recordings: Recordings = field(default_factory=dict)
    note: str = ""
    episodes: dict[str, Callable[[], Episode]] = field(default_factory=dict)


def run(options: Options) -> None:
    """Open the viewer, or export a page.

    Raises `UsageError` for addresses that cannot be listened on and `InputError` for a source that cannot be read.
    """
    if not 1 <= options.rate <= 1000 or not 1 <= options.splats <= 20_000_000:
        raise UsageError(
            f"rate {options.rate:g} and splats {options.splats}: 1 to 1000 and 1 to 20000000 are possible."
        )
    try:
        import gworld.viewer.gate  # noqa: F401 - asked for before anything is read
        from gworld.viewer.allocator import hold_little
    except ImportError as error:
        raise MissingBackendError(f"the viewer needs viser ({error}). Run `pip install 'viser>=1.1,<2'`.") from error
    hold_little()
    if options.follow or _in_progress(options.source):
        _watch(options)
        return
    found = _open(options)
    if found.note:
        say(found.note)
    if options.export is not None:
        _export(found, options)
    else:
        _serve(found, options)


def _export(found: _Found, options: Options) -> None:
    from gworld.viewer.export import export_page

    assert options.export is not None
    first = next(iter(found.recordings.values()), None)
    rollout = None if first is None else first()
    if options.export.suffix.lower() == ".glb":
        _export_glb(found, options, rollout)
        return
    frames = export_page(
        found.world, options.export, rollout, splats=min(options.splats, 300_000), overwrite=options.overwrite
    )
    size = options.export.stat().st_size
    if options.json:
        print_json({"out": str(options.export), "frames": frames, "bytes": size})
        return
    say(f"wrote {options.export}: {frames} frames, {size / 1e6:.1f} MB")
    say("next: open it in a browser; it needs no server")


def _export_glb(found: _Found, options: Options, rollout: Rollout | None) -> None:
    from gworld.files import refuse_existing
    from gworld.simulate.files import write_animation
    from gworld.viewer.player import fit_rollout

    assert options.export is not None
    if rollout is None:
        raise UsageError(
            f"`{options.source}` holds no motion; `gworld convert` makes a .glb of a world that stands still."
        )
    refuse_existing(options.export, overwrite=options.overwrite)
    moves = fit_rollout(rollout, found.world)
    write_animation(found.world, moves, options.export)
    size = options.export.stat().st_size
    if options.json:
        print_json({"out": str(options.export), "frames": len(moves), "bytes": size})
        return
    say(f"wrote {options.export}: {len(moves)} instants, {size / 1e6:.1f} MB")
    say("next: open it in a viewer of glTF with KHR_gaussian_splatting")


def _in_progress(source: Path) -> bool:
    """Whether a path is a run that has no world yet."""
    begun = any((source / name).exists() for name in ("live.json", "checkpoints", "stages.json"))
    return begun and not any((source / name / "world.json").is_file() for name in ("", "world"))


def _watch(options: Options) -> None:
    """Show a run while it is made, from the files that it leaves; everything else on this machine goes first."""
    from gworld.viewer.app import ViewOptions
    from gworld.viewer.live import LiveViewer

    if options.export is not None:
        raise UsageError(f"`{options.source}` has no world yet, so there is nothing to export.")
    if not options.source.is_dir():
        raise InputError(f"`{options.source}` is no run folder, so it cannot be followed.")
    import torch

    torch.set_num_threads(1)  # more of them would wait by spinning on the cores that the run needs
    with contextlib.suppress(OSError):
        os.nice(15)  # beside a busy run it gets a thirtieth of a core
    world = None if options.world is None else _load(options.world, options)
    settings = ViewOptions(options.host, options.port, options.clients, min(options.splats, 200_000), options.keep)
    _stay(LiveViewer(options.source, settings, world), options)


def _serve(found: _Found, options: Options) -> None:
    from gworld.viewer.app import Subject, Viewer, ViewOptions

    subject = Subject(found.world, options.source.resolve().name, found.recordings, _driver(found.world, options),
                      _views(found.world), _truth(found, options), lambda: _refine(found.world, options))  # fmt: skip
    settings = ViewOptions(options.host, options.port, options.clients, options.splats, options.keep,
                           options.overwrite)  # fmt: skip
    viewer = Viewer(subject, settings)
    _stay(viewer, options)
    if "kept" in viewer.message:
        say(viewer.message)


def _refine(world: World, options: Options) -> Refine:
    from gworld.cli.refine_film import refine_views_of

    return refine_views_of(world, options.refiner)


def _stay(viewer: Viewer | LiveViewer, options: Options) -> None:
    """Say where a viewer listens, and run it until it is ended."""
    from gworld.viewer.allocator import give_back

    def leave(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)  # what is being recorded is kept then too
    give_back()
    try:
        for line in addresses(viewer.gate.address, viewer.gate.port, viewer.gate.token is not None):
            say(line)
        if options.json:
            print_json({"address": viewer.gate.address, "port": viewer.gate.port, "token": viewer.gate.token})
        gc.freeze()  # what is here now stays: to look for what visitors leave behind takes no fifth of a second then
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
            viewer.run(options.seconds)
    finally:
        signal.signal(signal.SIGTERM, before)
        viewer.close()


def addresses(address: str, port: int, token: bool) -> list[str]:
    """What to tell the user about how to get in."""
    lines = [f"open {address}", "Ctrl+C ends it"]
    if token:
        lines.insert(1, "others on this network can open it with that token; nothing is encrypted on the way")
    where = os.environ.get("SSH_CONNECTION", "").split()
    if where:
        server, ssh_port = (where[2], where[3]) if len(where) == 4 else (socket.gethostname(), "22")
        extra = "" if ssh_port == "22" else f" -p {ssh_port}"
        user = os.environ.get("USER", "")
        target = f"{user}@{server}" if user else server
        lines.insert(1, f"from your own machine: ssh{extra} -L {port}:localhost:{port} {target}")
    return lines


def _driver(world: World, options: Options) -> Any:
    """What drives the world's agents; None where it has none."""
    if not any(agent.action is not None for agent in world.agents):
        if options.actions is not None:
            raise UsageError("`--actions` are for agents; this world has none. Bind a robot with `gworld bind`.")
        return None
    from gworld.simulate.actions import read_actions
    from gworld.simulate.engine import Engine, EngineOptions
    from gworld.simulate.learned import open_stepper
    from gworld.simulate.tasks import parse_task
    from gworld.viewer.driver import Driver

    step = 1.0 / options.rate
    table = None if options.actions is None else read_actions(options.actions, world, step)
    stepper = open_stepper(world, step, options.dynamics)
    say(stepper.note)
    task = parse_task(options.task, world) if options.task else None
    return Driver(Engine(world, stepper, EngineOptions(step)), table, task=task)


def _truth(found: _Found, options: Options) -> dict[str, Callable[[], Episode]]:
    """The episodes whose films are shown beside the recordings, by their names."""
    if options.truth is None:
        return found.episodes
    from gworld.data.record import load_record

    truth = options.truth
    existing_file(truth / "episode.json")
    return dict.fromkeys(found.recordings, lambda: load_record(truth))


def _views(world: World) -> np.ndarray | None:
    """How many views saw each Gaussian, where the world says so."""
    import numpy as np

    from gworld.reconstruct.coverage import load_coverage

    coverage = None if world.folder is None else load_coverage(world.folder)
    if coverage is None or len(coverage) != len(world.gaussians):
        return None
    return np.unpackbits(coverage.views.numpy(), axis=1).sum(axis=1, dtype=np.int64)


def _open(options: Options) -> _Found:
    """The world and the recordings of a source."""
    from gworld.simulate.files import read_rollout

    source = options.source
    recordings: Recordings = {}
    episodes: dict[str, Callable[[], Episode]] = {}
    if source.suffix.lower() in (".parquet", ".pq") and source.is_file():
        recordings = {source.stem: lambda: read_rollout(source)}
    elif source.is_dir():
        episodes = _episodes(source)
        recordings = {name: _motion_of(name, read) for name, read in episodes.items()}
    for path in options.rollouts:
        recordings[_free_name(path.stem, recordings)] = lambda path=path: read_rollout(path)
    if options.rollouts and not recordings:
        raise InputError("no rollout could be found.")
    if len(recordings) == len(options.rollouts):
        return _Found(_load(source, options), recordings)
    place = options.world or _world_beside(source)
    if place is not None:
        note = "" if options.world else f"in the world `{place}`"
        return _Found(_load(place, options), recordings, note, episodes)
    first = next(iter(recordings.values()))()
    note = "no world is beside it, so each link is a ball; name the world with `--world`"
    return _Found(_balls(first), recordings, note, episodes)


def _load(path: Path, options: Options) -> World:
    from gworld.cli.scenes import load_scene
    from gworld.scene.world import Entity

    world = load_scene(path, options.source_axes)
    if world.entities:
        return world
    parts = tuple(Entity(link.name, "object", (index,)) for index, link in enumerate(world.links) if index)
    return replace(world, entities=(Entity("scene", "static", (0,)), *parts))


def _episodes(folder: Path) -> dict[str, Callable[[], Episode]]:
    """The episodes of a folder that is one or a store of them, read when they are chosen."""
    from gworld.data.record import load_record
    from gworld.data.store import is_episode_store, open_episodes, read_episode

    if (folder / "episode.json").is_file():
        return {folder.name: lambda: load_record(folder)}
    if not is_episode_store(folder):
        return {}
    episodes = open_episodes(folder)
    if not len(episodes):
        raise InputError(f"`{folder}` holds no episode yet. Ingest or record some.")
    if len(episodes) > MAX_EPISODES:
        say(f"{len(episodes)} episodes; the first {MAX_EPISODES} are offered")

    def reader(position: int) -> Callable[[], Episode]:
        return lambda: read_episode(episodes, position)

    return {
        f"episode {entry.episode} ({entry.behaviour}, {entry.seconds:.1f} s)": reader(position)
        for position, entry in enumerate(episodes.entries[:MAX_EPISODES])
    }


def _motion_of(name: str, read: Callable[[], Episode]) -> Callable[[], Rollout]:
    from gworld.viewer.player import rollout_of

    return lambda: rollout_of(read(), name)


def _world_beside(source: Path) -> Path | None:
    """A world in the folder of a recording, or in one of the two above."""
    base = source.resolve() if source.is_dir() else source.resolve().parent
    places = [place for folder in (base, *base.parents[:2]) for place in (folder, folder / "world")]
    return next((place for place in places if (place / "world.json").is_file()), None)


def _balls(rollout: Rollout) -> World:
    """A world in which every link of a rollout is a ball: motion without anything that is known to move."""
    import torch

    from gworld.data.shapes import plain, sphere
    from gworld.scene.gaussians import join_gaussians
    from gworld.scene.links import Link
    from gworld.scene.world import Entity, World
    from gworld.viewer.splats import hue

    places = rollout.link_poses[0, :, :3]
    size = max(0.02 * float((places.amax(0) - places.amin(0)).max()), 0.01)
    names = [name for name in rollout.link_names if name != "world"]
    links, entities, parts = [Link("world")], [Entity("scene", "static", (0,))], []
    for index, name in enumerate(names, 1):
        pose = tuple(rollout.link_poses[0, rollout.link_names.index(name)].double().tolist())
        ball = sphere(size, size / 4, plain(*hue(index - 1)))
        parts.append(replace(ball, links=torch.full_like(ball.links, index)))
        links.append(Link(name, pose, 0))
        entities.append(Entity(name, "object", (index,)))
    if not parts:
        raise InputError("the recording moves no link, so there is nothing to show. Name its world with `--world`.")
    return World(join_gaussians(parts), tuple(links), tuple(entities))


def _free_name(name: str, taken: Recordings) -> str:
    return name if name not in taken else _free_name(f"{name}'", taken)
