"""Conformance of NIR readers: nets by operator and whole ones, each dialect, each reader, spike for spike.

`python -m tests.conformance` prints the table of docs/nir.md.
"""
