"""Triton's kernels for packed weights, where Triton is installed."""

from triton_process import needs_triton, run_checks


@needs_triton
def test_products_and_unpacking_equal_those_of_unpacked_weights() -> None:
    run_checks("packed_kernels.py")
