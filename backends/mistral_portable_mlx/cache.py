"""Cache: keys and values of each layer and page, a page being a whole lane, in MLX arrays that are written in place.

MLX arrays are values: a write makes a new array. If nothing else refers to the old one, the new one takes over its
memory, and the write costs only the rows written. Else, as where a page is a copy of another, MLX copies it first.

Pages of sequences that are stepped together lie in one array, a stack, so that one write and one attention serve all.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from mistral_portable.boundary import LaneState
from mistral_portable.boundary.shared import check_pages
from mistral_portable.cache import CacheSpec, Reads, StepPlan
from mistral_portable.errors import CapacityError
from mistral_portable_mlx.attention import Format
from mistral_portable_mlx.memory import Memory
from mistral_portable_mlx.stacks import Parts, Stack, copied, room

__all__ = ["Cache", "Seats"]

_TOGETHER = 64  # tokens; a sequence that adds more reads a prompt, and does not join a stack before it decodes


@dataclass(frozen=True)
class Seats:
    """The part of a step that is in one stack. rows: of the stack, rising. sequences: that of each row, an index in the
    plan."""

    stack: Stack
    rows: tuple[int, ...]
    sequences: tuple[int, ...]


@dataclass(frozen=True)
class _Party:
    """Sequences that belong into one stack. pages: theirs; sources: the pages whose contents they begin with."""

    pages: tuple[int, ...]
    sources: tuple[int, ...]
    slots: int

    def each(self) -> "list[_Party]":
        """Parties of one sequence each."""
        return [_Party((page,), (source,), self.slots) for page, source in zip(self.pages, self.sources, strict=True)]


class Cache:
    """The arrays of all pages. Memory is taken as a page fills, and given back when another sequence begins in it."""

    def __init__(self, spec: CacheSpec, format: Format, memory: Memory) -> None:
        self._spec, self._format, self._memory = spec, format, memory
        self._heads = spec.num_key_value_heads
        self._stacks: dict[tuple[int, int], Stack] = {}  # by layer group and page

    @property
    def nbytes(self) -> int:
        """Bytes now allocated; shared arrays count once."""
        arrays = {id(array): array.nbytes for array in self.arrays()}
        return sum(arrays.values())

    def slot_bytes(self, group: int) -> int:
        """Bytes of a slot in all layers of a group."""
        return len(self._spec.groups[group].layers) * self._format.nbytes(self._heads, 1)

    def slots(self, plan: StepPlan, group: int) -> list[int]:
        """Slots that the page of each of the plan's sequences has in the step: those that it holds, or more."""
        reads, page_size = plan.groups[group], self._spec.groups[group].page_size
        begins = (plan.positions[plan.query_starts[:-1]] == 0).tolist()
        held = [0 if new else self._slots(group, source) for new, source in zip(begins, _sources(reads), strict=True)]
        return [max(room(end, page_size), old) for end, old in zip(plan.ends.tolist(), held, strict=True)]

    def growth(self, plan: StepPlan) -> int:
        """Bytes that the plan's pages take beyond those they hold; fewer where a sequence begins in a longer one."""
        return sum(
            self.slot_bytes(group) * (sum(self.slots(plan, group)) - sum(self._slots(group, page) for page in pages))
            for group, pages in enumerate(reads.pages[:, 0].tolist() for reads in plan.groups)
        )

    def take(self, plan: StepPlan) -> list[list[Seats]]:
        """Find the stacks of the plan's sequences, by layer group, and make room for its tokens.

        There must be memory for that, see `growth`.

        Sequences of equally many slots are brought into one stack, which is copied when one joins or leaves. Where
        there is no room for that, they stay in the stacks in which they are. Raises CapacityError if there is none for
        pages that must move, as they grow, begin or are copies; what a page holds for other sequences has not changed.
        """
        self._begin(plan)
        for group in range(len(self._spec.groups)):
            for party in self._parties(plan, group):
                self._bring_together(group, party)
        return [self._seats(reads.pages[:, 0].tolist(), group) for group, reads in enumerate(plan.groups)]

    def put(self, taken: Sequence[Sequence[Seats]], layers: Mapping[int, list[Parts]]) -> None:
        """Keep the arrays that a step has made of those of the stacks from `take`, by layer."""
        for group, seats in zip(self._spec.groups, taken, strict=True):
            for layer in group.layers:
                for seat, parts in zip(seats, layers[layer], strict=True):
                    seat.stack.layers[layer] = parts

    def arrays(self) -> Parts:
        """The arrays of all stacks and layers; those that a copied page shares twice."""
        stacks = dict.fromkeys([*self._stacks.values()])  # a list first: `nbytes` is read beside a step that changes it
        return [array for stack in stacks for parts in stack.layers.values() for array in parts]

    def clear(self) -> None:
        """Release all memory."""
        self._stacks.clear()

    def read(self, group: int, pages: Sequence[int], blank: Sequence[int]) -> LaneState:
        """NumPy copies named KIND.LAYER, scales KIND.LAYER.scales, each [pages, heads, slots, n]; bfloat16 as uint16.

        They have as many slots as the longest of the pages; the others end in zeros. So does the last page have in its
        slots `blank`.
        """
        layers, empty = self._spec.groups[group].layers, self._empty_parts()
        slots = max((self._slots(group, page) for page in pages), default=0)
        state = {}
        for layer in layers:
            for at, (part, like) in enumerate(empty.items()):
                out = np.zeros((len(pages), self._heads, slots, like.shape[3]), _numpy_name(like.dtype))
                for row, page in zip(out, pages, strict=True):
                    for array in self._row(group, layer, page)[at : at + 1]:
                        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
                        row[:, : array.shape[2]] = np.array(plain)[0]
                out[-1:, :, [slot for slot in blank if slot < slots]] = 0
                state[self._name(part, layer)] = out
        return state

    def write(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        """Put arrays from `read` into pages.

        Raises CacheError if they are not this model's, CapacityError if they do not fit; nothing has changed then.
        """
        own, like = self._spec.groups[group], self._empty_parts()
        saved = state.get(self._name(self._format.parts[0], own.layers[0]))
        slots = min(saved.shape[2], own.page_size) if saved is not None and saved.ndim == 4 else 0
        rows = {part: ((self._heads, slots, array.shape[3]), _numpy_name(array.dtype)) for part, array in like.items()}
        suffixes = {part: part.partition(".")[2] for part in like if "." in part}
        check_pages(state, self._spec, group, len(pages), rows, suffixes)
        self._memory.require_growth(len(pages) * slots * self.slot_bytes(group), slots)
        loaded = {
            layer: [
                [
                    mx.array(np.ascontiguousarray(state[self._name(part, layer)][row : row + 1])).view(array.dtype)
                    for part, array in like.items()
                ]
                for row in range(len(pages))
            ]
            for layer in own.layers
        }
        mx.eval(list(loaded.values()))
        self._restack(group, pages)
        for row, page in enumerate(pages):
            self._stacks[group, page] = Stack((page,), slots, {layer: loaded[layer][row] for layer in own.layers})

    def _begin(self, plan: StepPlan) -> None:
        """Release the old arrays of pages in which a sequence begins, and of those that become copies."""
        begun = plan.positions[plan.query_starts[:-1]] == 0
        for group, reads in enumerate(plan.groups):
            old = (*reads.pages[begun, 0].tolist(), *reads.copies[:, 1].tolist())
            if held := [page for page in old if (group, page) in self._stacks]:
                self._restack(group, held)

    def _parties(self, plan: StepPlan, group: int) -> list[_Party]:
        """The sequences by the number of slots that their pages have or need; those that read a prompt one by one."""
        reads = plan.groups[group]
        pages, counts = reads.pages[:, 0].tolist(), np.diff(plan.query_starts).tolist()
        sources, slots = _sources(reads), self.slots(plan, group)
        parties: dict[tuple[int, int | None], list[int]] = {}
        for s, count in enumerate(counts):
            parties.setdefault((slots[s], s if count > _TOGETHER else None), []).append(s)
        return [
            _Party(tuple(pages[s] for s in some), tuple(sources[s] for s in some), size)
            for (size, _), some in parties.items()
        ]

    def _bring_together(self, group: int, party: _Party) -> None:
        """Make a stack of the pages of a party, unless they are one; of as many as must move, where memory is short."""
        stack = self._stacks.get((group, party.sources[0]))
        if stack is not None and stack.slots >= party.slots:
            if party.pages == party.sources and sorted(stack.pages) == sorted(party.pages):
                return
            if stack.pages == party.sources and len(party.pages) == 1:
                # A copy of a page: MLX copies the arrays when one of the two is written.
                layers = {layer: list(parts) for layer, parts in stack.layers.items()}
                self._stacks[group, party.pages[0]] = Stack(party.pages, stack.slots, layers)
                return
        try:
            self._restack(group, party.pages, party.sources, party.slots)
        except CapacityError:
            moving = [one for one in party.each() if not self._may_stay(group, one)]
            if moving == [party]:
                raise
            for one in moving:
                self._bring_together(group, one)

    def _may_stay(self, group: int, party: _Party) -> bool:
        """Tell whether the pages of a party hold all that they need, in whatever stacks."""
        return party.pages == party.sources and all(self._slots(group, page) >= party.slots for page in party.pages)

    def _seats(self, pages: Sequence[int], group: int) -> list[Seats]:
        """The stacks of these pages, which are those of a plan's sequences."""
        found: dict[Stack, list[tuple[int, int]]] = {}
        for s, page in enumerate(pages):
            stack = self._stacks[group, page]
            found.setdefault(stack, []).append((stack.pages.index(page), s))
        seats = []
        for stack, some in found.items():
            rows, sequences = zip(*sorted(some), strict=True)
            seats.append(Seats(stack, rows, sequences))
        # By size, so that steps in which the same sizes are in another order have one shape.
        return sorted(seats, key=lambda seat: (seat.stack.slots, len(seat.stack.pages), seat.rows))

    def _restack(self, group: int, leaving: Collection[int], sources: Sequence[int] = (), slots: int = 0) -> Stack:
        """Take pages out of their stacks, and return a new stack that they make with the contents of `sources`; without
        these they are given up. Other pages of their stacks get arrays of their own.

        Each layer is evaluated before the next one, so that only one layer is in memory twice; raises CapacityError if
        there is no room for that. All are recorded before: if an evaluation fails, or Ctrl-C ends it, the pages hold
        what they held, evaluated or not.
        """
        places = [(group, page) for page in leaving]
        broken = {stack for place in places if (stack := self._stacks.get(place)) is not None}
        others = {page: stack for stack in broken for page in stack.pages if page not in leaving}
        self._require_copies(group, leaving, sources, slots, others)
        made = Stack(tuple(leaving), slots, {})
        alone = {page: Stack((page,), stack.slots, {}) for page, stack in others.items()}
        layers = self._spec.groups[group].layers
        for layer in layers:
            if sources:
                rows = [self._row(group, layer, page) for page in sources]
                made.layers[layer] = copied(self._format, self._heads, slots, rows)
                del rows
            for page, stack in others.items():
                alone[page].layers[layer] = copied(self._format, self._heads, stack.slots, [stack.row(layer, page)])
        kept = {place: stack for place, stack in self._stacks.items() if place not in places}
        joined = dict.fromkeys(places, made) if sources else {}
        self._stacks = kept | joined | {(group, page): stack for page, stack in alone.items()}
        for stack in broken:
            stack.layers.clear()  # else whoever holds it would keep the old arrays
        for layer in layers:
            mx.eval(made.layers.get(layer, []), [stack.layers[layer] for stack in alone.values()])
        return made

    def _require_copies(
        self, group: int, leaving: Collection[int], sources: Sequence[int], slots: int, others: Collection[int]
    ) -> None:
        """Raise CapacityError without the memory that `_restack` takes: what pages grow by, and one layer of those that
        are copied, whose old arrays go when the new ones are there."""
        had = sum(self._slots(group, page) for page in leaving)
        grown = max(0, slots * len(sources) - had)
        moved = sum(self._slots(group, page) for page in (*others, *sources))
        layers = len(self._spec.groups[group].layers)
        more = self.slot_bytes(group) * (grown * layers + moved) // layers
        self._memory.require_copies(more, len(others) + len(sources))

    def _slots(self, group: int, page: int) -> int:
        """Allocated slots of a page."""
        stack = self._stacks.get((group, page))
        return stack.slots if stack else 0

    def _row(self, group: int, layer: int, page: int) -> Parts:
        """The arrays of a page, each [1, heads, slots, n]; none if it has none."""
        stack = self._stacks.get((group, page))
        return stack.row(layer, page) if stack else []

    def _empty_parts(self) -> dict[str, mx.array]:
        """Arrays without slots, by the names of the parts."""
        return dict(zip(self._format.parts, self._format.empty(1, self._heads, 0), strict=True))

    def _name(self, part: str, layer: int) -> str:
        kind, *suffix = part.split(".")
        return ".".join([kind, str(layer), *suffix])


def _sources(reads: Reads) -> list[int]:
    """The page that each sequence's begins with: itself, or the one that it is a copy of."""
    copies = {target: source for source, target in reads.copies.tolist()}
    return [copies.get(page, page) for page in reads.pages[:, 0].tolist()]


def _numpy_name(dtype: mx.Dtype) -> str:
    """The dtype in saved pages, as NumPy names it; it has no bfloat16."""
    return "uint16" if dtype == mx.bfloat16 else str(dtype).removeprefix("mlx.core.")
