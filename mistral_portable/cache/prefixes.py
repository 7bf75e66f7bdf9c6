"""Prefixes: the beginnings of texts whose pages are still there, found by their tokens."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

from mistral_portable.cache.pool import PagePool
from mistral_portable.cache.spec import LayerGroup
from mistral_portable.cache.table import Table, span

__all__ = ["Found", "PagePrefixes", "Prefixes", "common_length"]


class Found(NamedTuple):
    """The first `length` tokens of a text, in these tables, one for each layer group; high: as `Table.oldest` takes it.

    The tables have references of their own: whoever found them releases their pages.
    """

    length: int
    high: int
    tables: tuple[Table, ...]


class Prefixes(Protocol):
    """The pages that are kept of sequences, also of those that have ended. Not safe for concurrent calls.

    salt: texts of one salt are not found by another's.
    """

    def keep(self, salt: Hashable, tokens: Sequence[int], high: int, tables: Sequence[Table], *, whole: bool) -> None:
        """Keep the pages of a lane that holds these tokens. whole: also a page that more tokens may still fill."""

    def find(self, salt: Hashable, tokens: Sequence[int]) -> Found | None:
        """The longest known beginning of the tokens from which a lane can go on."""

    def give_way(self) -> bool:
        """Let go of what has been unused for the longest time; False if lanes use all that is kept, or nothing is."""

    def clear(self) -> bool:
        """Let go of everything, also of what lanes use, which then need not copy it; False if nothing is kept."""

    def spare_slots(self, group: int) -> int:
        """Slots of a layer group's pages that are kept and that no lane uses."""


class PagePrefixes:
    """A tree of pages: below a page are those that have followed it, each under its tokens.

    So pages are found by all tokens up to their end, compared one by one, and a page that two texts share is kept once.
    In a windowed group a lane goes on from wherever the pages of the window are there.

    Example: pages of 2 slots, the texts 1 2 3 4 5 and 1 2 3 9 kept: [1 2] is above [3 4] and [3 9], [3 4] is above [5].
    `find` of 1 2 3 9 9 gives 4 tokens; of 1 2 3 7, 3 tokens: the slot of the 4 or the 9 is not read, and as the page
    is shared, a lane that writes there takes a copy.
    """

    def __init__(self, groups: Sequence[LayerGroup], pools: Sequence[PagePool]) -> None:
        self._groups, self._pools = groups, pools
        self._size = groups[0].page_size
        self._roots: dict[Hashable, _Node] = {}
        self._known: set[tuple[int, int]] = set()  # (group, page)
        self._recent: OrderedDict[tuple[_Node, int], None] = OrderedDict()  # (node, group), the latest used last

    def spare_slots(self, group: int) -> int:
        """Slots of a layer group's pages that are kept and that no lane uses."""
        pool = self._pools[group]
        return sum(pool.slots(page) for own, page in self._known if own == group and not pool.shared(page))

    def keep(self, salt: Hashable, tokens: Sequence[int], high: int, tables: Sequence[Table], *, whole: bool) -> None:
        """Keep the pages of a lane that holds these tokens. whole: also a page that more tokens may still fill."""
        size = self._size
        count = len(tokens) // size
        parts = [tuple(tokens[at * size : (at + 1) * size]) for at in range(count + (whole and len(tokens) % size > 0))]
        if not parts:
            return
        node = self._roots.setdefault(salt, _Node(None, (), len(tables), salt))
        path: list[_Node] = []
        for number, part in enumerate(parts):
            node = self._child(node, part, [table.page(number) for table in tables])
            path.append(node)
        for group, own in enumerate(self._groups):
            self._touch(group, path[span(own, len(tokens))[0] :])
        self._prune(node)

    def find(self, salt: Hashable, tokens: Sequence[int]) -> Found | None:
        """The longest known beginning of the tokens from which a lane can go on."""
        node, size = self._roots.get(salt), self._size
        if node is None:
            return None
        path: list[_Node] = []
        for at in range(0, len(tokens) - size + 1, size):  # full pages
            child = node.children.get(tuple(tokens[at : at + size]))
            if child is None:
                break
            path.append(child)
            node = child
        lengths = [at * size for at in range(len(path), 0, -1)]
        rest = tuple(tokens[len(path) * size : (len(path) + 1) * size])
        common, near = max(
            ((common_length(some.tokens, rest), some) for some in node.near(rest)), key=_first, default=(0, node)
        )
        if common:
            lengths.insert(0, len(path) * size + common)
            path.append(near)
        for length in lengths:
            tables = [self._table(group, path, length) for group in range(len(self._groups))]
            found = tuple(table for table in tables if table is not None)
            if len(found) == len(tables):
                for group, table in enumerate(found):
                    self._pools[group].share(table.pages)
                    self._touch(group, path[table.begin : table.begin + len(table.pages)])
                return Found(length, length, found)
        return None

    def give_way(self) -> bool:
        """Let go of what has been unused for the longest time; False if lanes use all that is kept, or nothing is."""
        for _ in range(len(self._recent)):
            node, group = next(iter(self._recent))
            if not self._pools[group].shared(node.pages[group] or 0):
                self._drop(node, group)
                self._prune(node)
                return True
            self._recent.move_to_end((node, group))  # in use
        return False

    def clear(self) -> bool:
        """Let go of everything, also of what lanes use, which then need not copy it; False if nothing is kept."""
        anything = bool(self._known)
        for group, page in self._known:
            self._pools[group].release([page])
        self._roots.clear()
        self._known.clear()
        self._recent.clear()
        return anything

    def _child(self, node: "_Node", part: tuple[int, ...], pages: Sequence[int | None]) -> "_Node":
        """The node of `part` below another, with these pages where it has none."""
        child = node.children.get(part)
        if child is None:
            shorter = [node.children[part[:n]] for n in range(1, len(part)) if part[:n] in node.children]
            child = node.add(part)
            for some in shorter:  # the same text, of which less was there
                for group, page in enumerate(some.pages):
                    if page is not None:
                        self._drop(some, group)
                node.remove(some)
        for group, page in enumerate(pages):
            # A page has one place: else one that no lane uses would count as in use.
            if page is not None and child.pages[group] is None and (group, page) not in self._known:
                child.pages[group] = page
                self._known.add((group, page))
                self._pools[group].share([page])
                self._recent[child, group] = None
        return child

    def _table(self, group: int, path: Sequence["_Node"], length: int) -> Table | None:
        """The part of the path that a lane of `length` tokens needs; None if it is not there."""
        first, count = span(self._groups[group], length)
        pages = [node.pages[group] for node in path[first : first + count]]
        found = tuple(page for page in pages if page is not None)
        return Table(first, found) if len(found) == count else None

    def _touch(self, group: int, path: Sequence["_Node"]) -> None:
        # The first page last: without it the others of the text are of no use.
        for node in reversed(path):
            if node.pages[group] is not None:
                self._recent.move_to_end((node, group))

    def _drop(self, node: "_Node", group: int) -> None:
        page = node.pages[group]
        assert page is not None
        node.pages[group] = None
        self._known.remove((group, page))
        del self._recent[node, group]
        self._pools[group].release([page])

    def _prune(self, node: "_Node") -> None:
        """Remove what has neither pages nor anything below, from here up."""
        while not node.children and all(page is None for page in node.pages):
            if node.parent is None:
                del self._roots[node.salt]
                return
            node.parent.remove(node)
            node = node.parent


class _Node:
    """A page's tokens, its number in each layer group (None: it is not kept there), and what has followed it."""

    __slots__ = ("_order", "children", "pages", "parent", "salt", "tokens")

    def __init__(self, parent: "_Node | None", tokens: tuple[int, ...], groups: int, salt: Hashable) -> None:
        self.parent, self.tokens, self.salt = parent, tokens, salt
        self.pages: list[int | None] = [None] * groups
        self.children: dict[tuple[int, ...], _Node] = {}
        self._order: list[tuple[int, ...]] = []  # the keys of `children`, sorted: those that begin alike are neighbours

    def add(self, tokens: tuple[int, ...]) -> "_Node":
        self.children[tokens] = child = _Node(self, tokens, len(self.pages), self.salt)
        insort(self._order, tokens)
        return child

    def remove(self, child: "_Node") -> None:
        del self.children[child.tokens]
        del self._order[bisect_left(self._order, child.tokens)]

    def near(self, tokens: tuple[int, ...]) -> list["_Node"]:
        """The neighbours of these tokens among the children: no other child has more first tokens in common."""
        at = bisect_left(self._order, tokens)
        return [self.children[some] for some in self._order[max(0, at - 1) : at + 1]]


def _first(pair: tuple[int, _Node]) -> int:
    return pair[0]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of first tokens that both have."""
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))
