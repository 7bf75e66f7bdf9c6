"""Lane: what the manager knows of one sequence."""

from dataclasses import dataclass
from typing import NamedTuple

from mistral_portable.cache.plan import StepPlan
from mistral_portable.cache.table import Table

__all__ = ["Before", "Lane"]


class Before(NamedTuple):
    """A lane as it was before its last plan. Its pages are not free while that plan can be undone."""

    plan: StepPlan
    length: int
    high: int
    tables: tuple[Table, ...]


@dataclass
class Lane:
    """A sequence of `length` tokens, and its pages: a table for each layer group.

    high: the largest length so far; in a ring, position p was overwritten if p < high - page_size. promised: the length
    that the lane was opened for, 0 as soon as it is reached. owner: who opened it; None: whoever knows its number.
    """

    tables: tuple[Table, ...]
    length: int = 0
    high: int = 0
    before: Before | None = None
    promised: int = 0
    owner: object = None
