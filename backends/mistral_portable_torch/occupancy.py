"""How many programs of a Triton kernel keep a GPU busy."""

__all__ = ["PROGRAMS"]

PROGRAMS = 256
"""Two for each multiprocessor of an H100, of which it has 132."""
