"""Reconstruct: Gaussians fitted to posed views by the native renderer, and what is known of their quality."""
