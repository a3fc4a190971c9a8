"""Latency benchmark: candidates in worker processes that take turns, and honest statistics of what they took."""
