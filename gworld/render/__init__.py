"""Pictures of Gaussians: one contract, several backends."""

from gworld.verbs import make_callable

make_callable("render", "gworld.render.select")
