"""Other people's simulators as simulations: gymnasium environments built on MuJoCo, dm_control suites, robosuite.

`gym:gym_aloha/AlohaTransferCube-v0`, `gym:FetchPush-v4`, `dm:cheetah/run`, `robosuite:TwoArmLift`.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gworld.data.simulators import Actor, Simulation, links_below, open_scene
from gworld.data.simulators_driver import mujoco_library, own_joints
from gworld.data.simulators_mjcf import Goal
from gworld.data.simulators_options import SceneOptions
from gworld.data.simulators_rigid import model_cameras
from gworld.errors import InputError, MissingBackendError, UsageError
from gworld.scene.world import ActionSpec

PLAIN = SceneOptions()
SERVO, SPEED, FORCE = "position", "velocity", "force"
EXTRAS = {"gym_aloha": "gym-aloha", "gymnasium_robotics": "gymnasium-robotics"}


@dataclass
class Environment:
    """What an adapter tells: MuJoCo's model and data, steps per second, the columns of an action and who owns them.

    `columns` are (agent, name, unit, low, high, joint or -1); `begin(seed)`, `act(action, after)` and `outcome()` run
    the environment; `hold` is the action at its start under which position servos stay.
    """

    model: Any
    data: Any
    fps: float
    columns: list[tuple[str, str, str, float, float, int]]
    begin: Callable[[int], None]
    act: Callable[[np.ndarray, Callable[[], None]], None]
    hold: Callable[[], np.ndarray]
    outcome: Callable[[], bool | None] = field(default=lambda: None)


class EnvironmentDriver:
    """Runs an environment for a `Simulation`; agents hold what they were last told."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.rows: dict[str, list[int]] = {}
        for index, column in enumerate(environment.columns):
            self.rows.setdefault(column[0], []).append(index)
        self.servo = np.array([column[1].rpartition("/")[2] in (SERVO, "opening") for column in environment.columns])
        self.last = np.zeros(len(environment.columns))

    def reset(self, seed: int) -> dict[str, Goal]:
        """Begin the environment anew; its own task is the goal."""
        with _quiet():
            self.environment.begin(seed)
        self.last = self.environment.hold()
        return {}

    def advance(self, commands: dict[str, np.ndarray], after: Callable[[], None]) -> None:
        """One step of the environment."""
        action = np.empty(len(self.last))
        for name, rows in self.rows.items():
            action[rows] = commands[name]
        self.environment.act(action, after)
        self.last = action
        mujoco_library().mj_kinematics(self.environment.model, self.environment.data)

    def null(self, agent: str) -> np.ndarray:
        """Servos stay where they were told to be, everything else is zero."""
        rows = self.rows[agent]
        low, high = (np.array([self.environment.columns[row][k] for row in rows]) for k in (3, 4))
        return np.clip(np.where(self.servo[rows], self.last[rows], 0.0), low, high)

    def outcome(self) -> bool | None:
        """What the environment says."""
        return self.environment.outcome()


def open_simulation(name: str, options: SceneOptions = PLAIN) -> Simulation:
    """A scene of ours by its name, or another's as `gym:ID`, `dm:DOMAIN/TASK` or `robosuite:NAME`.

    Of the options, others' environments heed `cameras`, `width` and `height`; their pace is their own. Agents are told
    apart by `left` and `right` in the names of their joints. Raises `UsageError` for an unknown name,
    `MissingBackendError` for a package that is not installed, `InputError` for one that does not run on MuJoCo.
    """
    kind, colon, rest = name.partition(":")
    if not colon:
        return open_scene(name, options)
    openers = {"gym": _open_gym, "dm": _open_dm, "robosuite": _open_robosuite}
    if kind not in openers or not rest:
        raise UsageError(f"`{name}` names no simulator; gym:ID, dm:DOMAIN/TASK and robosuite:NAME do.")
    mujoco_library()
    with _quiet():
        environment = openers[kind](rest)
        environment.begin(0)
    return _simulation(name, environment, options)


def _simulation(name: str, environment: Environment, options: SceneOptions) -> Simulation:
    model, data = environment.model, environment.data
    driver = EnvironmentDriver(environment)
    owners: dict[str, set[int]] = {}
    for agent, *_, joint in environment.columns:
        bodies = owners.setdefault(agent, set())
        if joint >= 0:
            bodies.add(int(model.jnt_bodyid[joint]))
    actors = []
    for agent, bodies in owners.items():
        others = set().union(*(b for a, b in owners.items() if a != agent))
        links = _territory(model, bodies or _jointed(model), others)
        rows = [column for column in environment.columns if column[0] == agent]
        prefix = _common_prefix([model.joint(row[5]).name for row in rows if row[5] >= 0])
        joints, qpos = own_joints(model, links, prefix)
        names, units = tuple(row[1] for row in rows), tuple(row[2] for row in rows)
        spec = ActionSpec(names, units, tuple(row[3] for row in rows), tuple(row[4] for row in rows))
        actors.append(Actor(agent, "robot", spec, links, joints, qpos, _deepest(model, links)))
    options = replace(options, fps=environment.fps, agents=len(actors))
    cameras = model_cameras(model, data, options.cameras, options.width, options.height)
    simulation = Simulation(name, options, model, data, driver, tuple(actors), cameras)
    simulation.reset(0)
    return simulation


def _open_gym(name: str) -> Environment:
    gymnasium = _module("gymnasium", "gymnasium")
    for package in EXTRAS:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(package)
            if package == "gymnasium_robotics":
                gymnasium.register_envs(module)
    if name.startswith("gym_aloha/"):
        _module("gym_aloha", "gym-aloha")
    try:
        env = gymnasium.make(name).unwrapped
    except gymnasium.error.Error as error:
        raise UsageError(f"gymnasium cannot make `{name}`: {' '.join(str(error).split())[:200]}.") from error
    inner = getattr(env, "_env", None)
    if inner is not None and hasattr(inner, "physics"):
        return _gym_aloha(env, inner)
    part = next(
        (e for e in (env, *(getattr(env, k, None) for k in ("point_env", "ant_env", "robot_env"))) if _has_model(e)),
        None,
    )
    if part is None or not hasattr(env.action_space, "low"):
        raise InputError(f"`{name}` holds no MuJoCo model with continuous actions; choose another environment.")
    info: dict[str, Any] = {}

    def begin(seed: int) -> None:
        info.clear()
        env.reset(seed=seed)

    def act(action: np.ndarray, after: Callable[[], None]) -> None:
        info.update(env.step(action.astype(env.action_space.dtype))[4])
        after()

    def outcome() -> bool | None:
        success = info.get("is_success", info.get("success"))
        return None if success is None else bool(success)

    low, high = env.action_space.low, env.action_space.high
    begin(0)
    before = float(part.data.time)
    env.step(np.clip(np.zeros(low.shape, env.action_space.dtype), low, high))
    fps = 1.0 / (float(part.data.time) - before)
    columns = _columns(part.model, low, high)
    return Environment(part.model, part.data, fps, columns, begin, act, _holding(part, columns), outcome)


def _gym_aloha(env: Any, inner: Any) -> Environment:
    """The two ViperX arms, stepped without the pictures that each of their observations draws."""
    environment = _dm_environment(inner, lambda seed: env.reset(seed=seed))
    model, columns = environment.model, []
    for side in ("left", "right"):
        for part in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate"):
            joint = model.joint(f"vx300s_{side}/{part}").id
            low, high = map(float, model.jnt_range[joint])
            columns.append((side, f"{part}/{SERVO}", "rad", low, high, joint))
        columns.append((side, "gripper/opening", "1", 0.0, 1.0, -1))

    def hold() -> np.ndarray:
        openings = [0.5, 0.5]
        with contextlib.suppress(AttributeError, IndexError):
            openings = [float(inner.task.get_qpos(inner.physics)[k]) for k in (6, 13)]
        ctrl = environment.data.ctrl
        return np.array([*ctrl[:6], openings[0], *ctrl[8:14], openings[1]])

    def begin(seed: int) -> None:
        renders = inner.task.get_observation
        inner.task.get_observation = lambda physics: {"images": {}, "qpos": inner.task.get_qpos(physics)}
        env._format_raw_obs = lambda raw: raw
        try:
            env.reset(seed=seed)
        finally:
            inner.task.get_observation = renders

    reward = lambda: bool(inner.task.get_reward(inner.physics) == inner.task.max_reward)  # noqa: E731
    return replace(environment, columns=columns, hold=hold, begin=begin, outcome=reward)


def _open_dm(name: str) -> Environment:
    suite = _module("dm_control.suite", "dm_control")
    domain, _, task = name.partition("/")
    try:
        inner = suite.load(domain, task)
    except ValueError as error:
        raise UsageError(f"dm_control has no task `{name}`: {' '.join(str(error).split())[:200]}.") from error

    def begin(seed: int) -> None:
        inner.task.random.seed(seed)
        inner.reset()

    environment = _dm_environment(inner, begin)
    spec = inner.action_spec()
    shape = np.zeros(spec.shape)
    columns = _columns(environment.model, spec.minimum + shape, spec.maximum + shape)
    return replace(environment, columns=columns, hold=_holding(environment, columns))


def _dm_environment(inner: Any, begin: Callable[[int], Any]) -> Environment:
    """A dm_control environment, stepped through its task but without its observations."""
    physics, task = inner.physics, inner.task
    count = max(1, round(inner.control_timestep() / physics.timestep()))

    def act(action: np.ndarray, after: Callable[[], None]) -> None:
        task.before_step(action, physics)
        for _ in range(count):
            physics.step()
            after()
        task.after_step(physics)

    hold: Callable[[], np.ndarray] = lambda: np.zeros(0)  # noqa: E731
    return Environment(physics.model.ptr, physics.data.ptr, 1.0 / inner.control_timestep(), [], begin, act, hold)


def _open_robosuite(name: str) -> Environment:
    suite = _module("robosuite", "robosuite")
    robots = ["Panda", "Panda"] if name.startswith("TwoArm") else ["Panda"]
    env = suite.make(
        name, robots=robots, has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False,
        ignore_done=True, hard_reset=False,
    )  # fmt: skip
    model, data = env.sim.model._model, env.sim.data._data
    low, high = env.action_spec
    sides = ["left", "right"] if len(env.robots) > 1 else ["robot"]
    columns: list[tuple[str, str, str, float, float, int]] = []
    for index in range(len(low)):
        owner = min(index * len(sides) // len(low), len(sides) - 1)
        joint = int(env.robots[owner]._ref_joint_indexes[0]) if index in (0, len(low) // 2) else -1
        columns.append((sides[owner], f"action{index}", "1", float(low[index]), float(high[index]), joint))

    def begin(seed: int) -> None:
        env.seed = seed
        env.rng = np.random.default_rng(seed)
        env.reset()

    def act(action: np.ndarray, after: Callable[[], None]) -> None:
        env.step(action)
        after()

    outcome = lambda: bool(env._check_success())  # noqa: E731
    return Environment(model, data, float(env.control_freq), columns, begin, act, lambda: np.zeros(len(low)), outcome)


def _columns(model: Any, low: np.ndarray, high: np.ndarray) -> list[tuple[str, str, str, float, float, int]]:
    """Columns of an action: one per actuator where their numbers agree, else by number; `left` and `right` apart."""
    if len(low) != model.nu:
        both = zip(low.tolist(), high.tolist(), strict=True)
        return [
            ("robot", f"action{i}", "1", _finite(float(a), -1.0), _finite(float(b), 1.0), -1)
            for i, (a, b) in enumerate(both)
        ]
    rows = []
    for index in range(model.nu):
        on_joint = int(model.actuator_trntype[index]) in (0, 1)
        joint = int(model.actuator_trnid[index, 0]) if on_joint else -1
        name = model.joint(joint).name if joint >= 0 else model.actuator(index).name or f"actuator{index}"
        bias = model.actuator_biasprm[index]
        quantity = SERVO if bias[1] else SPEED if bias[2] else FORCE
        sliding = joint >= 0 and int(model.jnt_type[joint]) == 2
        unit = {SERVO: "m" if sliding else "rad", SPEED: "m/s" if sliding else "rad/s", FORCE: "1"}[quantity]
        limited = bool(model.actuator_ctrllimited[index])
        bounds = model.actuator_ctrlrange[index] if limited else (-1.0, 1.0)
        if limited and not np.allclose((low[index], high[index]), bounds):
            unit = "1"  # a share of the range
        rows.append(
            (
                name,
                quantity,
                unit,
                _finite(float(low[index]), float(bounds[0])),
                _finite(float(high[index]), float(bounds[1])),
                joint,
            )
        )
    sides = ["left" if "left" in row[0].lower() else "right" if "right" in row[0].lower() else "" for row in rows]
    split = set(sides) == {"left", "right"}
    prefix = _common_prefix([row[0] for row in rows])
    return [
        (side if split else "robot", f"{name.removeprefix(prefix)}/{quantity}", unit, low_, high_, joint)
        for side, (name, quantity, unit, low_, high_, joint) in zip(sides, rows, strict=True)
    ]


def _holding(owner: Any, columns: list[tuple[str, str, str, float, float, int]]) -> Callable[[], np.ndarray]:
    """Position servos told to stay where their joints are."""

    def hold() -> np.ndarray:
        model, data = owner.model, owner.data
        action = np.zeros(len(columns))
        for index, (_, name, unit, low, high, joint) in enumerate(columns):
            if not name.endswith(f"/{SERVO}") or joint < 0:
                continue
            value, (least, most) = data.qpos[model.jnt_qposadr[joint]], model.actuator_ctrlrange[index]
            share = (value - least) / (most - least) if unit == "1" else 0.0
            action[index] = np.clip(low + share * (high - low) if unit == "1" else value, low, high)
        return action

    return hold


def _territory(model: Any, bodies: set[int], others: set[int]) -> tuple[int, ...]:
    """An agent's links: its joints' bodies, all below them, and all above that hold nobody else's joints."""
    links: set[int] = set()
    for body in bodies:
        root = body
        while int(model.body_parentid[root]) and not others & set(links_below(model, int(model.body_parentid[root]))):
            root = int(model.body_parentid[root])
        links |= set(links_below(model, root))
    return tuple(sorted(links))


def _jointed(model: Any) -> set[int]:
    """Bodies with a hinge or a slide, for environments whose actions are not their actuators."""
    return {int(model.jnt_bodyid[j]) for j in range(model.njnt) if model.jnt_type[j] in (2, 3)}


def _deepest(model: Any, links: tuple[int, ...]) -> str:
    """The link that the most joints move: the first of several, before fingers part."""
    depth: dict[int, int] = {}
    for link in links:
        slides = any(model.jnt_type[j] == 2 for j in range(model.njnt) if model.jnt_bodyid[j] == link)
        own = 0 if slides else int(model.body_jntnum[link])
        depth[link] = depth.get(int(model.body_parentid[link]), 0) + own
    best = max(links, key=lambda link: (depth[link], -link))
    return model.body(best).name or f"body{best}"


def _common_prefix(names: list[str]) -> str:
    """What all names share up to a slash, such as `vx300s_left/`."""
    heads = {name.rpartition("/")[0] for name in names}
    return f"{heads.pop()}/" if len(heads) == 1 and names and "/" in names[0] else ""


def _finite(value: float, otherwise: float) -> float:
    return float(value) if abs(float(value)) < 1e6 else float(otherwise)


def _has_model(part: Any) -> bool:
    mujoco = mujoco_library()
    return isinstance(getattr(part, "model", None), mujoco.MjModel)


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingBackendError(
            f"this simulator needs the package {package} ({error}). Run `pip install {package}`."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Environments announce and warn about themselves while they are made."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
