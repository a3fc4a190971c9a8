"""Passes: pure rewrites of a graph that keep every spike; pipelines.py says which run for which target."""
