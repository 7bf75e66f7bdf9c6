"""Prefetches of the compiled kernels: spread among the products, as they are written."""

import re
from itertools import groupby

import pytest
from numba_ir import linux_listing


@pytest.mark.parametrize("isa", ["avx512_vnni", "avx2"])
@pytest.mark.parametrize("name", ["linear_q4_k", "linear_q6_k", "linear_iq4_xs"])
def test_few_prefetches_stand_in_a_row(name: str, isa: str) -> None:
    """LLVM put all of a block together, 72 in q4_k and 112 in q6_k: each waits for the one before, and halved the
    speed of one token; iq4_xs had none on AVX2. Those for several tokens, which read from the cache, are left to it: an
    eighth of a block."""
    instructions = re.findall(r"^\t([a-z]\w*)", linux_listing(name, isa), re.M)
    rows = [len(list(some)) for found, some in groupby(instructions, lambda each: each.startswith("prefetch")) if found]
    assert sum(rows) > 72  # there are some
    assert max(rows) <= 14
