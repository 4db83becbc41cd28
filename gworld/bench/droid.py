"""A real robot under its recorded commands: DROID, each episode foretold by a model that learned from the others."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gworld.agents.kinematics import forward_kinematics
from gworld.agents.tree import Body, Joint, Skeleton
from gworld.bench.catalogue import BenchInput
from gworld.bench.rows import Row, at_most
from gworld.data.annotated import is_annotated, open_annotated
from gworld.data.shapes import plain, sphere
from gworld.data.source import ROBOT
from gworld.dynamics.actuation import actuation_of
from gworld.dynamics.drives import make_drive
from gworld.dynamics.network import Dynamics, NetworkConfig
from gworld.dynamics.recordings import CONTEXT, Recordings, cut_batch, gather_recordings, select_recordings
from gworld.dynamics.rollout import predict_poses
from gworld.dynamics.train import TrainConfig, train
from gworld.errors import InputError
from gworld.geometry import pose_from_transform
from gworld.scene.episode import Episode
from gworld.scene.gaussians import join_gaussians
from gworld.scene.links import Link
from gworld.scene.world import ActionSpec, Entity, World

HORIZONS = (8, 15, 30)
"""Steps after which the hand is compared, at 15 a second."""
MOVED = 0.01
"""Windows in which the hand goes this far (m) are counted apart: standing still is easily foretold."""
SPEED = 2.0
"""Bound (rad/s) of the commanded rates."""
ARM = (
    (0.0, 0.333, 0.0), (0.0, 0.0, -np.pi / 2), (0.0, 0.316, np.pi / 2), (0.0825, 0.0, np.pi / 2),
    (-0.0825, 0.384, -np.pi / 2), (0.0, 0.0, np.pi / 2), (0.088, 0.0, np.pi / 2),
)  # fmt: skip
"""Franka Emika's arm: (a, d, alpha) of each joint in Craig's convention, from the maker's documentation."""
FLANGE = 0.107


@dataclass(frozen=True)
class Hand:
    """One episode's places of the hand [T,3] as the robot tells them, and its joints and commanded rates [T,7]."""

    places: Tensor
    joints: Tensor
    rates: Tensor
    dt: float


def rows(given: BenchInput) -> Iterator[Row]:
    """Errors of the hand over all episodes, each left out once; nothing where the recordings are missing."""
    folder = None if given.data is None else given.data / "droid"
    if folder is None or not is_annotated(folder):
        yield Row("recordings of DROID (a folder `droid` below --data)", float("nan"), "", note="missing: skipped")
        return
    hands = read_hands(folder)
    skeleton = franka()
    off = max(float((reach(skeleton, hand.joints) - hand.places).norm(dim=-1).max()) for hand in hands)
    yield at_most("the arm's model against the recorded hand, largest difference", 1e3 * off, "mm", 1.0)
    found: dict[str, list[Tensor]] = {}
    ways = []
    for left_out in range(len(hands)):
        if given.quick and left_out > 1:
            break
        rest = [hand for index, hand in enumerate(hands) if index != left_out]
        part, way = foretell(skeleton, hands[left_out], learn_hands(skeleton, rest, given))
        ways.append(way)
        for name, places in part.items():
            found.setdefault(name, []).append(places)
    yield from error_rows({name: torch.cat(parts) for name, parts in found.items()}, torch.cat(ways))


def error_rows(errors: dict[str, Tensor], way: Tensor) -> Iterator[Row]:
    """Medians and 90th percentiles by horizon; the model beside the better of two simple ways."""
    for column, steps in enumerate(HORIZONS):
        moved = way[:, column] > MOVED
        part = {name: 1e3 * value[moved, column] for name, value in errors.items()}
        label = f"hand after {steps / 15:.2g} s"
        others = {name: float(value.median()) for name, value in part.items() if name != "network"}
        best = min(others, key=lambda name: others[name])
        note = f"{int(moved.sum())} windows that move {1e3 * MOVED:g} mm; baseline: {best}"
        value = float(part["network"].median())
        yield at_most(label, value, "mm", others[best], others[best], note)
        high, other = (float(part[name].quantile(0.9)) for name in ("network", best))
        yield Row(f"{label}, 90th percentile", high, "mm", "", other)
        for name, number in others.items():
            yield Row(f"{label}, {name}", number, "mm")
        still, held = (1e3 * errors[name][~moved, column] for name in ("network", "copy"))
        if len(still):
            yield Row(f"{label}, where it moves less, median", float(still.median()), "mm", "", float(held.median()))


def read_hands(folder: Path) -> list[Hand]:
    """All episodes of the folder; raises `InputError` where joints, commanded rates or the hand are missing."""
    source, hands = open_annotated(folder), []
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(len(source.names)):
            episode = source.read(index, Path(scratch))
            try:
                rates = episode.signals["action.joint_velocity"]
                places = episode.signals["state.cartesian_position"][:, :3]
                joints = episode.joints[ROBOT][:, :7]
            except KeyError as error:
                raise InputError(f"`{folder}` episode {index} lacks {error}; DROID's own fields are needed.") from error
            dt = float((episode.times[-1] - episode.times[0]) / (len(episode) - 1))
            hands.append(Hand(places.float(), joints.float(), rates.float(), dt))
    return hands


def franka() -> Skeleton:
    """The arm from its published lengths: seven joints about their own z, and the flange."""
    links = [Body("base", -1, np.eye(4))]
    joints = []
    for index, (a, d, alpha) in enumerate(ARM):
        links.append(Body(f"link{index + 1}", index, _craig(a, d, alpha)))
        joints.append(Joint(f"joint{index + 1}", "revolute", index + 1, np.array([0, 0, 1.0]), np.zeros(3), (0.0,)))
    links.append(Body("flange", len(ARM), _craig(0.0, FLANGE, 0.0)))
    return Skeleton("franka", tuple(links), tuple(joints))


def reach(skeleton: Skeleton, joints: Tensor) -> Tensor:
    """Where the flange is [...,3]."""
    return forward_kinematics(skeleton, joints)[..., -1, :3, 3]


def learn_hands(skeleton: Skeleton, hands: list[Hand], given: BenchInput) -> Dynamics:
    """A model of how the arm follows commanded rates."""
    data = hand_recordings(skeleton, hands)
    model = Dynamics(NetworkConfig(contact=False, residual=False, gravity=False, seed=given.seed))
    judge = torch.arange(0, len(data), 4)
    learn = torch.tensor([row for row in range(len(data)) if row % 4])
    steps = 10 if given.quick else 40
    config = TrainConfig(steps, 32, (8, 24), every=20, noise=0.0, dropped=0.0, alone=0, seed=given.seed)
    train(model, select_recordings(data, learn), select_recordings(data, judge), config)
    return model


def foretell(skeleton: Skeleton, hand: Hand, model: Dynamics) -> tuple[dict[str, Tensor], Tensor]:
    """Errors (m) of the hand [N,H] by the model and by simple ways, and how far it truly went [N,H]."""
    data = hand_recordings(skeleton, [hand], whole=True)
    last = max(HORIZONS)
    first = torch.arange(CONTEXT - 1, len(hand.joints) - last, 3)
    batch = cut_batch(
        data, torch.stack([torch.zeros_like(first), first], dim=1), last, model.belief, actuation_of(model)
    )
    with torch.no_grad():
        moved = predict_poses(model, batch.scene, batch.start, batch.actions, last, data.drives)
    at = torch.tensor(HORIZONS)
    truth, here = hand.places[first[:, None] + at], hand.places[first][:, None]
    told = hand.dt * torch.stack([hand.rates[first + k] for k in range(last)], dim=1).cumsum(1)
    rate = (hand.joints[first] - hand.joints[first - 1])[:, None]
    now = hand.joints[first][:, None]
    guessed = {
        "network": moved[:, at - 1, -1, :3, 3],
        "integrate the command": reach(skeleton, now + told[:, at - 1]),
        "constant velocity": reach(skeleton, now + rate * at[:, None]),
        "copy": here.expand_as(truth),
    }
    return {name: (places - truth).norm(dim=-1) for name, places in guessed.items()}, (truth - here).norm(dim=-1)


def hand_recordings(skeleton: Skeleton, hands: list[Hand], whole: bool = False) -> Recordings:
    """Episodes cut into pieces of four seconds (or whole) in a world that holds nothing but the arm."""
    size = len(hands[0].joints) if whole else 60
    pieces = [(hand, start) for hand in hands for start in range(0, len(hand.joints) - size + 1, size)]
    world = arm_world(skeleton)
    episodes = [piece_episode(skeleton, hand, start, size, world) for hand, start in pieces]
    drives = {"arm": make_drive(world, world.agents[0], skeleton, torch.zeros(7))}
    return gather_recordings([world], episodes, drives)


def arm_world(skeleton: Skeleton) -> World:
    """The arm alone, a ball for every link, its joints at zero."""
    chain = pose_from_transform(forward_kinematics(skeleton, torch.zeros(7)))
    parts, links = [], [Link("world")]
    for index, body in enumerate(skeleton.links):
        ball = sphere(0.05, 0.02, plain(0.8, 0.8, 0.8))
        parts.append(replace(ball, links=torch.full_like(ball.links, index + 1)))
        links.append(Link(f"arm/{body.name}", tuple(chain[index].tolist()), 0))
    names = tuple(f"joint{index + 1}/velocity" for index in range(7))
    spec = ActionSpec(names, ("rad/s",) * 7, (-SPEED,) * 7, (SPEED,) * 7)
    entities = (Entity("scene", "static", (0,)), Entity("arm", "agent", tuple(range(1, len(links))), spec))
    return World(join_gaussians(parts), tuple(links), entities)


def piece_episode(skeleton: Skeleton, hand: Hand, start: int, size: int, world: World) -> Episode:
    """One piece as an episode of link poses."""
    joints = hand.joints[start : start + size]
    poses = torch.zeros(size, len(world.links), 7)
    poses[:, 0, 3] = 1.0
    poses[:, 1:] = pose_from_transform(forward_kinematics(skeleton, joints))
    times = hand.dt * torch.arange(size, dtype=torch.float64)
    return Episode(
        times,
        actions={"arm": hand.rates[start : start + size]},
        joints={"arm": joints},
        link_poses=poses,
        link_names=tuple(link.name for link in world.links),
        behaviour="human",
        source="DROID",
    )


def _craig(a: float, d: float, alpha: float) -> np.ndarray:
    c, s = np.cos(alpha), np.sin(alpha)
    return np.array([[1, 0, 0, a], [0, c, -s, -d * s], [0, s, c, d * c], [0, 0, 0, 1.0]])
