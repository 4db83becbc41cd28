"""A learned, multi-agent motion model of Gaussians: structure given, everything physical learned."""
