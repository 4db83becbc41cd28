"""Refining: rendered film into footage, where the world is unsure of itself, and nowhere else."""
