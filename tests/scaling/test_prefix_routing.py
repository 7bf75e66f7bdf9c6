"""Routing by prefixes: the replica that has read most, unless it has too much to do."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.scaling.prefix_routing import PrefixRouting, prefixes

LOADS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), min_size=1)
TEXTS = st.text("xy", max_size=3).map(lambda text: "".join(letter * 256 for letter in text))


@given(TEXTS, TEXTS)
def test_prefixes_agree_as_far_as_texts_do(left: str, right: str) -> None:
    one, two = prefixes({"prompt": left}), prefixes({"prompt": right, "temperature": 0})
    same = [a == b for a, b in zip(one, two, strict=False)]
    left_json, right_json = json.dumps(left), json.dumps(right)
    assert same == [left_json[: 256 * (i + 1)] == right_json[: 256 * (i + 1)] for i in range(min(len(one), len(two)))]


@given(st.dictionaries(st.sampled_from(["system", "messages", "prompt", "model"]), st.integers() | TEXTS))
def test_any_body_has_prefixes(body: dict[str, Any]) -> None:
    assert all(len(digest) == 16 for digest in prefixes(body))


@given(st.lists(st.tuples(st.lists(st.binary(max_size=1), max_size=4), LOADS), max_size=20), st.integers(0, 5))
def test_the_choice(requests: list[tuple[list[bytes], dict[str, int]]], slack: int) -> None:
    routing = PrefixRouting(slack)
    homes: dict[bytes, str] = {}
    for beginnings, loads in requests:
        ranked = routing.choose(beginnings, loads)
        assert sorted(ranked) == sorted(loads)
        best, least = ranked[0], min(loads.values())
        able = {name for name, load in loads.items() if load <= least + slack}
        wanted = next((homes[one] for one in reversed(beginnings) if homes.get(one) in able), None)
        assert best == wanted if wanted is not None else loads[best] == least
        homes |= dict.fromkeys(beginnings, best)


@given(st.integers(1, 4), st.integers(1, 5))
def test_idle_replicas_take_turns(count: int, rounds: int) -> None:
    routing = PrefixRouting(slack=0)
    loads = dict.fromkeys("abcd"[:count], 0)
    turns = [routing.choose([], loads)[0] for _ in range(count * rounds)]
    assert turns == turns[:count] * rounds
    assert len(set(turns)) == count
