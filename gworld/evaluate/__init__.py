"""Evaluate: the pages and figures that tell a user how good a run is."""
