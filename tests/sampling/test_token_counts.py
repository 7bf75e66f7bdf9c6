from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.sampling.token_counts import TokenCounts


@given(tokens=st.lists(st.integers(0, 100), max_size=300))
def test_tokens_are_counted(tokens: list[int]) -> None:
    """Also beyond the first room, for 16 distinct ids."""
    counted, expected = TokenCounts(), Counter(tokens)
    for token in tokens:
        counted.add(token)
    assert counted.tokens.tolist() == list(expected)
    assert counted.counts.tolist() == list(expected.values())
