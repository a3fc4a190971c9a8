"""Synaptic operations: what a network's layers do, counted exactly, and what that costs."""
