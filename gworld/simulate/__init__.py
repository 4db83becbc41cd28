"""Simulating a world: any actions in, motion and pictures out, for any number of agents and worlds."""

from gworld.verbs import make_callable

make_callable("simulate", "gworld.simulate.run")
