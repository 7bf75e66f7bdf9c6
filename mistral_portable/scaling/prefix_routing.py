"""Prefix routing: which replica has read most of what a request begins with."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

__all__ = ["PrefixRouting", "prefixes"]

_BLOCK = 256  # characters that are compared together
_BLOCKS = 64  # of a request that are compared
_KNOWN = 100_000  # beginnings that are remembered
_ASKED = ("system", "instructions", "messages", "prompt", "input")


def prefixes(body: Mapping[str, Any]) -> list[bytes]:
    """Digests of ever longer beginnings of what a request of any API asks, in blocks of 256 characters.

    >>> one, two = (prefixes({"prompt": "Once upon a time. " * 20 + end}) for end in ("Tom", "Lily"))
    >>> len(one), one[0] == two[0], one[1] == two[1]
    (2, True, False)
    """
    text = "".join(json.dumps(body[name], ensure_ascii=False) for name in _ASKED if name in body)
    found, digest = [], hashlib.blake2b(digest_size=16)
    for begin in range(0, min(len(text), _BLOCK * _BLOCKS), _BLOCK):
        digest.update(text[begin : begin + _BLOCK].encode("utf-8", "surrogatepass"))
        found.append(digest.digest())
    return found


class PrefixRouting:
    """Remembers where beginnings have been sent, the newest of them."""

    def __init__(self, slack: int) -> None:
        """slack: how many requests more than another a replica may have and still be chosen for what it has read."""
        self._slack = slack
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._turns: dict[str, int] = {}  # when each replica was chosen last

    def choose(self, beginnings: list[bytes], loads: Mapping[str, int]) -> list[str]:
        """All replicas, the best one first; remember that it is sent to that one.

        loads: requests of each replica that run or wait. The best is the one that had the longest of the beginnings, if
        it has at most `slack` requests more than the idlest; else the idlest, and of several the one whose last turn is
        the longest ago. The others follow in this order.

        >>> routing = PrefixRouting(slack=2)
        >>> routing.choose([b"a"], {"x": 1, "y": 0})[0], routing.choose([b"a"], {"x": 0, "y": 1})[0]
        ('y', 'y')
        >>> routing.choose([b"a"], {"x": 0, "y": 3})[0]
        'x'
        """
        ranked = sorted(loads, key=lambda name: (loads[name], self._turns.get(name, 0), name))
        if not ranked:
            return []
        for beginning in reversed(beginnings):
            home = self._known.get(beginning)
            if home is not None and home in loads and loads[home] <= loads[ranked[0]] + self._slack:
                ranked.remove(home)
                ranked.insert(0, home)
                break
        self._turns = {name: self._turns.get(name, 0) for name in loads}
        self._turns[ranked[0]] = max(self._turns.values()) + 1
        for beginning in beginnings:
            self._known[beginning] = ranked[0]
            self._known.move_to_end(beginning)
        while len(self._known) > _KNOWN:
            self._known.popitem(last=False)
        return ranked
