"""SavedLane: a sequence outside of the cache, and its way there and back through program and manager."""

from dataclasses import dataclass

from mistral_portable.boundary.program import LaneState, Program
from mistral_portable.cache import CacheManager, SavedIntegers
from mistral_portable.errors import CacheError

__all__ = ["SavedLane", "load_lane", "save_lane"]


@dataclass(frozen=True)
class SavedLane:
    """A lane's content: the pages that its next query needs, in a windowed group those of the window.

    integers: those of `CacheManager.save`, for JSON. groups: for each layer group the arrays of its pages, whose names
    no two groups share, for `numpy.savez`.
    """

    integers: SavedIntegers
    groups: tuple[LaneState, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for state in self.groups for array in state.values())


def save_lane(program: Program, manager: CacheManager, lane: int) -> SavedLane:
    """Copy a lane's integers and arrays, with zeros in the slots of its pages that hold no position of it.

    The caller sees to it that no step or plan comes between.
    """
    integers, pages = manager.save(lane)
    groups = zip(pages, manager.blank(lane), strict=True)
    return SavedLane(integers, tuple(program.read_pages(group, *found) for group, found in enumerate(groups)))


def load_lane(program: Program, manager: CacheManager, saved: SavedLane) -> int:
    """Open a lane that goes on where the saved one was. The caller sees to it that no step or plan comes between.

    Raises CacheError if the saved lane is another model's or of other pages, BusyError if no lane is free,
    CapacityError if there is no memory for its pages; no lane is open then.
    """
    if len(saved.groups) != len(manager.spec.groups):
        raise CacheError(f"saved lane has {len(saved.groups)} layer groups, this model {len(manager.spec.groups)}")
    lane, pages = manager.load(saved.integers)
    try:
        for group, (some, state) in enumerate(zip(pages, saved.groups, strict=True)):
            program.write_pages(group, some, state)
    except BaseException:
        manager.close(lane)
        raise
    return lane
