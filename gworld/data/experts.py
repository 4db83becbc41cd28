"""Scripts that do what the scenes' goals ask, and movers that bring a hand, a pusher or a car somewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gworld.data.simulators import Simulation
from gworld.data.simulators_reach import Reacher
from gworld.data.simulators_street import STEER, WHEELBASE
from gworld.errors import UsageError

Mover = Callable[[np.ndarray, float], np.ndarray]
"""(place [3], share of the full speed) -> the action [A] that takes the agent's touching point there."""
HOVER, GRASPED = 0.16, 0.05
"""Height of a hand that travels; how far a thing in the hand is from it at most (m)."""


def mover_for(simulation: Simulation, agent: str) -> Mover:
    """How to send an agent somewhere; raises `UsageError` for one whose actions are neither of the kinds known."""
    actor = simulation.agents[agent]
    if actor.kind == "pusher":
        return _slide(simulation, agent)
    if actor.kind == "vehicle":
        return _drive(simulation, agent)
    if actor.kind == "arm":
        reach = _Reach(simulation, agent)
        return lambda place, _: reach.command(place, None, 0.5)
    units = zip(actor.spec.names, actor.spec.units, strict=True)
    if sum(name.endswith("/position") and unit in ("rad", "m") for name, unit in units) >= 3:
        return _stretch(simulation, agent)
    raise UsageError(f"agent `{agent}` of `{simulation.name}` cannot be sent to a place; choose random or extreme.")


def expert_source(simulation: Simulation, agent: str, rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """The script for an agent's goal; raises `UsageError` where there is none (other people's environments)."""
    kind = simulation.agents[agent].kind
    if kind == "pusher":
        return _Push(simulation, agent, rng).act
    if kind == "vehicle":
        return _Commute(simulation, agent).act
    if kind == "arm":
        return _Pick(simulation, agent).act
    raise UsageError(f"there is no expert for agent `{agent}` of `{simulation.name}`; choose another behaviour.")


def _slide(simulation: Simulation, agent: str) -> Mover:
    limit = np.array(simulation.agents[agent].spec.high)

    def move(place: np.ndarray, speed: float) -> np.ndarray:
        gap = place[:2] - simulation.hand(agent)[:2]
        far = max(float(np.linalg.norm(gap)), 1e-9)
        return np.clip(gap / far * min(speed * limit[0], 5.0 * far), -limit, limit)

    return move


def _drive(simulation: Simulation, agent: str) -> Mover:
    """Pure pursuit (Coulter, 1992): the wheel's angle of the arc through the place; backs off when it is behind."""
    spec = simulation.agents[agent].spec

    def move(place: np.ndarray, speed: float) -> np.ndarray:
        x, y, turn = (float(simulation.data.joint(f"{agent}/{j}").qpos[0]) for j in ("x", "y", "turn"))
        velocity = np.array([simulation.data.joint(f"{agent}/{j}").qvel[0] for j in ("x", "y")])
        ahead = np.array([np.cos(turn), np.sin(turn)])
        gap = place[:2] - np.array([x, y])
        along, across = float(gap @ ahead), float(ahead[0] * gap[1] - ahead[1] * gap[0])
        far = max(float(np.hypot(along, across)), 0.5)
        now = float(velocity @ ahead)
        back = along < 0 and far < 8.0
        steer = np.arctan2(2 * across * WHEELBASE, far**2) if along > 0 or back else np.sign(across) * STEER
        wanted = (-3.0 if back else min(8.0 * speed, 2.0 + far)) * (0.5 if abs(steer) > 0.4 else 1.0)
        return np.clip([-steer if back else steer, 2.0 * (wanted - now)], spec.low, spec.high)

    return move


def _stretch(simulation: Simulation, agent: str) -> Mover:
    """For robots of other people that take joint positions: reach with the hand's place alone."""
    reacher, actor = Reacher(simulation, agent), simulation.agents[agent]
    hinges = [actor.joints[actor.qpos.index(int(at))] for at in reacher.slots]
    places = {f"{name}/position": index for index, name in enumerate(hinges)}

    def move(place: np.ndarray, _: float) -> np.ndarray:
        now = simulation.hand(agent)
        gap = place - now
        values = reacher.solve(now + gap * min(1.0, 0.08 / max(float(np.linalg.norm(gap)), 1e-9)))
        action = simulation.null_action(agent)
        for column, name in enumerate(actor.spec.names):
            if name in places:
                action[column] = values[places[name]]
        return np.clip(action, actor.spec.low, actor.spec.high)

    return move


class _Push:
    """Goes around behind its thing and pushes it towards the goal, correcting sideways; begins anew when it slips."""

    def __init__(self, simulation: Simulation, agent: str, rng: np.random.Generator) -> None:
        self.simulation, self.agent = simulation, agent
        self.move = _slide(simulation, agent)
        self.goal = simulation.goals.get(agent)
        self.brisk = rng.uniform(0.6, 1.0)
        self.own = simulation.radius(f"{agent}/pusher")
        self.size = simulation.radius(self.goal.body) if self.goal else 0.0
        self.pushing = False

    def act(self) -> np.ndarray:
        if self.goal is None:
            return self.simulation.null_action(self.agent)
        place = self.simulation.hand(self.agent)[:2]
        thing = self.simulation.link_pose(self.goal.body)[:2]
        gap = np.array(self.goal.position[:2]) - thing
        far = float(np.linalg.norm(gap))
        if far < 0.4 * self.goal.radius:
            return self._back_off(place, thing)
        toward = gap / far
        offset = place - thing
        along = float(offset @ toward)
        across = offset - along * toward
        clear = self.size + self.own
        slack = (1.5 if self.pushing else 0.35) * self.own + 0.01
        self.pushing = along < -0.3 * clear and float(np.linalg.norm(across)) < slack
        if self.pushing:
            speed = 0.4 * self.brisk * min(1.0, 0.25 + 4.0 * far)
            return np.clip(speed * toward - 3.0 * across, -0.4, 0.4)
        return self._around(offset, toward, clear + 0.025, thing)

    def _around(self, offset: np.ndarray, toward: np.ndarray, ring: float, thing: np.ndarray) -> np.ndarray:
        """Along a circle about the thing to the place behind it."""
        now, wanted = np.arctan2(offset[1], offset[0]), np.arctan2(-toward[1], -toward[0])
        turn = (wanted - now + np.pi) % (2 * np.pi) - np.pi
        distance = float(np.linalg.norm(offset))
        if abs(turn) > 0.3:
            bend = now + np.clip(turn, -0.5, 0.5)
            radius = max(ring, min(distance, 1.6 * ring))
            point = thing + radius / np.cos(0.25) * np.array([np.cos(bend), np.sin(bend)])
            point = np.clip(point, -0.54, 0.54)
        else:
            point = thing - toward * ring
        return self.move(np.append(point, 0.0), self.brisk)

    def _back_off(self, place: np.ndarray, thing: np.ndarray) -> np.ndarray:
        away = place - thing
        far = float(np.linalg.norm(away))
        if far > self.size + self.own + 0.04:
            return np.zeros(2)
        return 0.15 * away / max(far, 1e-9)


class _Commute:
    """Drives to its goal on the road, slowing for whatever is in front, and stops there."""

    def __init__(self, simulation: Simulation, agent: str) -> None:
        self.simulation, self.agent = simulation, agent
        self.move = _drive(simulation, agent)
        self.goal = simulation.goals.get(agent)
        links = [f"{name}/chassis" for name in simulation.agents if name != agent] + list(simulation.objects)
        self.others = [(name, simulation.radius(name)) for name in links]

    def act(self) -> np.ndarray:
        simulation = self.simulation
        if self.goal is None:
            return simulation.null_action(self.agent)
        pose = simulation.link_pose(f"{self.agent}/chassis")
        turn = 2 * np.arctan2(pose[6], pose[3])
        ahead, aside = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
        gap = np.array(self.goal.position[:2]) - pose[:2]
        far = float(np.linalg.norm(gap))
        speed = min(0.75, far / 14.0)
        shift = 0.0
        for name, radius in self.others:
            other = simulation.link_pose(name)[:2] - pose[:2]
            front, side = float(other @ ahead), float(other @ aside)
            if 0 < front < 12.0 and abs(side) < radius + 1.3:
                shift += -np.sign(side or 1.0) * (radius + 1.8 - abs(side)) * (1.0 if front > 3 else 0.5)
                speed = min(speed, max(0.12, (front - radius - 3.0) / 12.0))
        if far < 0.5 * self.goal.radius:
            now = float(np.array([simulation.data.joint(f"{self.agent}/{j}").qvel[0] for j in ("x", "y")]) @ ahead)
            return np.array([0.0, np.clip(-2.0 * now, -4.0, 4.0)])
        target = pose[:2] + gap / max(far, 1e-9) * min(far, 9.0) + aside * np.clip(shift, -3.0, 3.0)
        return self.move(np.append(target, 0.0), speed)


class _Reach:
    """An arm's servo targets for a place of its grip, moved there by bounded steps along a straight line."""

    def __init__(self, simulation: Simulation, agent: str) -> None:
        self.simulation, self.agent = simulation, agent
        self.reacher = Reacher(simulation, agent)
        self.spec = simulation.agents[agent].spec
        self.values = simulation.null_action(agent)[:6]

    def command(self, place: np.ndarray, turn: float | None, opening: float, step: float = 0.03) -> np.ndarray:
        now = self.simulation.hand(self.agent)
        gap = place - now
        near = now + gap * min(1.0, step / max(float(np.linalg.norm(gap)), 1e-9))
        near[2] = max(near[2], 0.006)
        self.values = self.reacher.solve(near, turn, start=self.values)
        return np.clip([*self.values, opening], self.spec.low, self.spec.high)


class _Pick:
    """Reaches over its thing, grasps it, carries it to the goal, lets go and withdraws; begins anew when it slips."""

    def __init__(self, simulation: Simulation, agent: str) -> None:
        self.simulation, self.agent = simulation, agent
        self.reach = _Reach(simulation, agent)
        self.goal = simulation.goals.get(agent)
        self.home = simulation.hand(agent)
        self.phase, self.since, self.turn = "over", 0, 0.0
        index = simulation.link_names.index(f"{agent}/base")
        self.base = np.array(simulation.data.xpos[index][:2])

    def act(self) -> np.ndarray:
        if self.goal is None:
            return self.simulation.null_action(self.agent)
        hand, pose = self.simulation.hand(self.agent), self.simulation.link_pose(self.goal.body)
        thing, goal = pose[:3], np.array(self.goal.position)
        held = float(np.linalg.norm(hand - thing)) < GRASPED
        self.since += 1
        if self.phase in ("lift", "carry", "lower") and not held:
            self._enter("over")
        level = min(thing[2], 0.04)
        over, at = np.append(thing[:2], HOVER), np.append(thing[:2], level)
        turn = self._turn(pose)
        seconds = self.since / self.simulation.options.fps
        if self.phase == "over":
            if np.linalg.norm(hand[:2] - thing[:2]) < 0.012 and hand[2] < HOVER + 0.03:
                self._enter("down")
            return self.reach.command(over, turn, 1.0)
        if self.phase == "down":
            if hand[2] < level + 0.012 or seconds > 2.5:
                self._enter("close")
            return self.reach.command(at, turn, 1.0, step=0.02)
        if self.phase == "close":
            if seconds > 0.5:
                self._enter("lift")
            return self.reach.command(at, turn, 0.0)
        if self.phase == "lift":
            if hand[2] > HOVER - 0.03 or seconds > 2.5:
                self._enter("carry")
            return self.reach.command(np.append(hand[:2], HOVER), turn, 0.0, step=0.02)
        if self.phase == "carry":
            if np.linalg.norm(hand[:2] - goal[:2]) < 0.012:
                self._enter("lower")
            return self.reach.command(np.append(goal[:2], HOVER), turn, 0.0, step=0.025)
        if self.phase == "lower":
            bottom = goal[2] + hand[2] - thing[2] + 0.003
            if hand[2] < bottom + 0.006 or seconds > 2.5:
                self._enter("open")
            return self.reach.command(np.append(goal[:2], bottom), turn, 0.0, step=0.015)
        if self.phase == "open":
            if seconds > 0.4:
                self._enter("leave")
            return self.reach.command(hand, turn, 1.0)
        if seconds > 1.5 and not self.simulation.reached(self.agent):
            self._enter("over")
        rise = self.home if hand[2] > 0.12 else np.append(hand[:2], HOVER)
        return self.reach.command(rise, turn, 1.0)

    def _enter(self, phase: str) -> None:
        self.phase, self.since = phase, 0

    def _turn(self, pose: np.ndarray) -> float:
        """The hand's angle for gripping the thing across its y: of the equivalent ones, the one that bends the least.

        Once it holds the thing, the angle stays.
        """
        if self.goal is None or self.phase not in ("over", "down"):
            return self.turn
        straight = float(np.arctan2(*(pose[:2] - self.base)[::-1])) + np.pi  # a hand that points down looks back
        period = {"cube": np.pi / 2, "can": 0.0}.get(self.goal.body.rstrip("0123456789"), np.pi)
        w, x, y, z = pose[3:]
        skew = float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))) - straight
        self.turn = straight + ((skew + period / 2) % period - period / 2 if period else 0.0)
        return self.turn
