"""The steps of `gworld demo`: from the films of two agents that push things about to a judged simulation of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gworld.agents.actions import Control
from gworld.agents.binding import bind_object, bind_robot, save_bound
from gworld.agents.kinematics import rest_values
from gworld.agents.skeleton import read_robot
from gworld.agents.skinning import SkinOptions
from gworld.agents.tree import Skeleton, value_slots
from gworld.cli import evaluate, refine, simulate
from gworld.cli.options import say
from gworld.cli.refine_film import choose_refiner
from gworld.data.store import EpisodeSet, open_episodes, read_episode
from gworld.dynamics.drives import world_drives
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import gather_recordings, split_recordings
from gworld.dynamics.saved import save_model
from gworld.dynamics.stages_contact import ContactConfig
from gworld.dynamics.train import TrainConfig, train
from gworld.errors import InputError
from gworld.files import need_asset, read_json
from gworld.formats.world import load_world
from gworld.geometry import transform_from_pose
from gworld.reconstruct.coverage import save_coverage
from gworld.reconstruct.moving import MovingOptions, footage_coverage, read_footage, reconstruct_moving
from gworld.reconstruct.options import FitOptions
from gworld.scene.episode import Episode
from gworld.scene.gaussians import Gaussians
from gworld.scene.world import World

FOLDER = "recording"
AGENTS = ("left", "right")
OBJECTS = ("disc0", "box1", "tee2")
SKIN = SkinOptions(per_square_metre=30_000.0)
FPS = 20.0


@dataclass(frozen=True)
class Recording:
    """The bundled recording: its store, which episodes serve what, and the folder of models and meshes."""

    folder: Path
    store: EpisodeSet
    scan: tuple[int, ...]
    learn: tuple[int, ...]
    held_out: tuple[int, ...]

    def episode(self, number: int) -> Episode:
        """One of its episodes."""
        return read_episode(self.store, number)


def find_recording() -> Recording:
    """The recording that comes with gworld; raises `InputError` where the installation lacks it."""
    folder = need_asset(FOLDER)
    uses = read_json(folder / "recording.json")
    numbers = {name: tuple(int(n) for n in uses[name]) for name in ("scan", "learn", "held_out")}
    return Recording(folder, open_episodes(folder / "episodes"), **numbers)


def bind_scene(recording: Recording) -> tuple[World, dict[str, Skeleton]]:
    """An empty world with the robots and objects of the recording where its first scan has them, shapes only."""
    episode = recording.episode(recording.scan[0])
    assert episode.link_poses is not None
    first = dict(zip(episode.link_names, episode.link_poses[0].double(), strict=True))
    world, robots = World(_nothing(), cameras=episode.cameras, metric=True), {}
    for name in AGENTS:
        robots[name] = read_robot(recording.folder / name / f"{name}.xml", name)
        values = rest_values(robots[name])
        for joint, value in zip(episode.names[f"joints/{name}"], episode.joints[name][0].tolist(), strict=True):
            slots = value_slots(robots[name])
            values[slots[joint if joint in slots else joint.removeprefix(f"{name}/")]] = value
        control = Control("joint_velocities")
        world = bind_robot(world, robots[name], name, torch.eye(4).double(), values, control, SKIN)
    for name in OBJECTS:
        pose = transform_from_pose(first[name])
        world = bind_object(world, recording.folder / f"{name}.obj", name, pose, skin=SKIN)
    return world, robots


def reconstruct_scene(recording: Recording, out: Path, effort: float) -> dict[str, Any]:
    """Bind, fit to the scans' films, and save OUT/world."""
    bound, robots = bind_scene(recording)
    episodes = [recording.episode(number) for number in recording.scan]
    footage = read_footage(bound, episodes, 5)
    static = FitOptions(steps=max(1, round(700 * effort)), gaussians=12_000, sh_degree=0, hold_out=0, score_every=0)
    options = MovingOptions(static, steps=max(1, round(600 * effort)), spacing=0.012)
    told = _teller()
    world, _ = reconstruct_moving(bound, footage, out / "fit", options, told)
    coverage = footage_coverage(world.gaussians, footage)
    save_bound(world, robots, out / "world", also=lambda folder: save_coverage(coverage, folder))
    return {"gaussians": len(world.gaussians), "pictures": len(footage)}


def learn_motion(recording: Recording, out: Path, steps: int, effort: float) -> dict[str, Any]:
    """Train a small dynamics network on the recorded motions, in the shapes that were reconstructed."""
    world = load_world(out / "world")
    numbers = recording.learn[: max(4, round(effort * len(recording.learn)))]
    episodes = [recording.episode(number) for number in numbers]
    data = gather_recordings([world], episodes, world_drives(world))
    learn, judge = split_recordings(data, 0.15, torch.Generator().manual_seed(0))
    network = NetworkConfig(substeps=4, length=float(data.scene.scale.mean()), support=True, residual=False)
    alone = max(10, round(300 * min(effort, 1.0)))
    contact = ContactConfig(steps=max(1, round(ContactConfig.steps * min(effort, 1.0))))
    config = TrainConfig(steps=steps, batch=16, horizons=(2, 4), noise=0.0, alone=alone, every=max(steps // 2, 1))
    config = replace(config, contact=contact)
    model = Dynamics(network)
    train(model, learn, judge, config, None, lambda step, loss: say(f"  step {step}: {loss:.4f} radii off"))
    save_model(model, out / "dynamics")
    return {"episodes": len(episodes), "steps": steps}


def simulate_held_out(recording: Recording, out: Path, seconds: float) -> dict[str, Any]:
    """Run the held-out actions beside what really happened, and judge the run in a page."""
    options = simulate.Options(
        world=out / "world",
        dynamics=out / "dynamics",
        compare=recording.store.folder,
        number=recording.held_out[0],
        rate=FPS,
        width=240,
        seconds=seconds,
        out=out / "demo.mp4",
        overwrite=True,
    )
    simulate.run(options)
    page = evaluate.Options(run=out / "demo.mp4", out=out / "report.html", width=240, films=1, overwrite=True)
    return evaluate.make(page)


def refine_film(out: Path) -> dict[str, Any]:
    """Draw the simulated motion for one camera and refine it where the world is unsure; nothing without a refiner."""
    try:
        place = choose_refiner(None, None)
    except InputError as error:
        say(f"  left out: {error}")
        return {}
    film = out / "refined.mp4"
    refine.run(refine.Options(out / "demo.parquet", world=out / "world", refiner=place, out=film, width=240,
                              beside=True, overwrite=True))  # fmt: skip
    return {"out": str(film)}


def _nothing() -> Gaussians:
    """No Gaussian at all."""
    blank = torch.zeros
    return Gaussians(blank(0, 3), blank(0, 4), blank(0, 3), blank(0), blank(0, 1, 3), torch.zeros(0, dtype=torch.int32))


def _teller() -> Callable[[str, float], None]:
    """Says each stage once."""
    names = {
        "plates": "  what stands still behind the robots, camera by camera",
        "static": "  Gaussians of the table and the room",
        "together": "  scene and bodies together, each picture with the poses of its instant",
    }
    said: set[str] = set()

    def tell(stage: str, share: float) -> None:
        if stage not in said:
            said.add(stage)
            say(names[stage])

    return tell
