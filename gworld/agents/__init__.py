"""Robots and objects as Gaussians: kinematic trees, their motion, their skin, and how they enter a world."""
