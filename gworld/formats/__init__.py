"""Splat files and posed image sets, one reader or writer per file; `registry` chooses by content and name."""
