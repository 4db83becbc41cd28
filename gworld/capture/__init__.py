"""Capture: footage in, posed and masked views out; what cannot be posed is refused with what was measured."""
