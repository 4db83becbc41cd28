"""Joint values that bring a robot's hand to a place, by MuJoCo's own Jacobians: for scripts that act."""

from __future__ import annotations

from typing import Any

import numpy as np

from gworld.data.simulators import Simulation
from gworld.data.simulators_driver import mujoco_library

DAMPING, STEPS = 0.03, 40


class Reacher:
    """Solves one agent's reach on a copy of the state, so that looking ahead moves nothing."""

    def __init__(self, simulation: Simulation, agent: str) -> None:
        self.simulation, self.actor = simulation, simulation.agents[agent]
        self.mujoco: Any = mujoco_library()
        self.data = self.mujoco.MjData(simulation.model)
        model = simulation.model
        starts = {int(model.jnt_qposadr[j]): j for j in range(model.njnt)}
        hinge = [(at, starts[at]) for at in self.actor.qpos if model.jnt_type[starts[at]] == 3]
        self.slots = np.array([at for at, _ in hinge], int)
        joints = np.array([j for _, j in hinge], int)
        self.columns = model.jnt_dofadr[joints]
        limited = model.jnt_limited[joints].astype(bool)
        self.low = np.where(limited, model.jnt_range[joints, 0], -np.pi)
        self.high = np.where(limited, model.jnt_range[joints, 1], np.pi)

    def solve(self, place: np.ndarray, turn: float | None = None, start: np.ndarray | None = None) -> np.ndarray:
        """Values [J] of the agent's hinges with the hand at `place` [3], as near as limits allow.

        With `turn`, the hand's z points down and its x lies at that angle about the vertical. Damped least squares
        (Siciliano et al., Robotics, 2009, 3.5.1) from `start`, the values now when None.
        """
        mujoco, model, data = self.mujoco, self.simulation.model, self.data
        data.qpos[:] = self.simulation.data.qpos
        if start is not None:
            data.qpos[self.slots] = start
        size = 3 if turn is None else 6
        jacobian = np.zeros((6, model.nv))
        for _ in range(STEPS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            where, axes = self._hand(jacobian)
            error = np.zeros(6)
            error[:3] = place - where
            if turn is not None:
                wanted = np.array([[np.cos(turn), np.sin(turn), 0], [np.sin(turn), -np.cos(turn), 0], [0, 0, -1]])
                error[3:] = 0.5 * np.cross(axes.T, wanted.T).sum(axis=0)
            if np.abs(error[:size]).max() < 2e-4:
                break
            part = jacobian[:size][:, self.columns]
            length = float(np.linalg.norm(error[:size]))
            damped = part @ part.T + (DAMPING * min(1.0, 5 * length)) ** 2 * np.eye(size) + 1e-9 * np.eye(size)
            step = part.T @ np.linalg.solve(damped, error[:size] * min(1.0, 0.3 / length))
            data.qpos[self.slots] = np.clip(data.qpos[self.slots] + step, self.low, self.high)
        return data.qpos[self.slots].copy()

    def _hand(self, jacobian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The hand's place and axes; its Jacobian is written."""
        mujoco, model, data, name = self.mujoco, self.simulation.model, self.data, self.actor.hand
        if name in self.simulation.link_names:
            index = self.simulation.link_names.index(name)
            mujoco.mj_jacBody(model, data, jacobian[:3], jacobian[3:], index)
            return data.xpos[index].copy(), data.xmat[index].reshape(3, 3).copy()
        site = model.site(name).id
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy()
