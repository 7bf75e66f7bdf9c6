"""Triton's kernels are compiled for GPUs that are not there, and counted."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed: it comes with CUDA builds of torch")

from tools.triton_counts import LAUNCHES, counted


@pytest.mark.parametrize("capability", [80, 86, 90])
@pytest.mark.parametrize("name", LAUNCHES)
def test_every_kernel_compiles_without_spills_and_fits(name: str, capability: int) -> None:
    """A multiprocessor of compute capability 8.6 has least shared memory for a program: 99 KB."""
    for row in counted(LAUNCHES[name], capability):
        assert row.spilled == 0, row
        assert row.shared <= 99 * 1024, row
        assert row.loaded > 0, row


@pytest.mark.parametrize("name", [name for name in LAUNCHES if name.startswith("product of a token")])
def test_products_of_a_token_are_bound_by_instructions_above_60_percent_of_the_bandwidth_at_worst(name: str) -> None:
    """All instructions count: a row of 4,096 columns takes one pass."""
    (row,) = counted(LAUNCHES[name])
    assert row.whole / row.instructions * row.issue <= 1 / 0.6


@pytest.mark.parametrize("name", [name for name in LAUNCHES if name.startswith("attention")])
def test_attention_loads_keys_and_values_once_and_is_not_bound_by_instructions(name: str) -> None:
    split, merge = counted(LAUNCHES[name])
    assert (split.name, merge.name) == ("_split", "_merge")
    assert split.needed <= split.loaded <= 1.05 * split.needed  # a page's number besides, in each thread
    assert split.issue < 0.5
