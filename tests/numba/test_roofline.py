"""The machine's limits: the probes do the work that they are timed for, and rows show what was measured."""

from collections.abc import Iterator

import numpy as np
import pytest
from mistral_portable_numba import roofline


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a buffer of 4 MiB."""
    monkeypatch.setattr(roofline, "_BUFFER", 2**22)
    roofline._probes.cache_clear()
    yield
    roofline._probes.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_read_probe_reads_all_bytes(threads: int) -> None:
    assert 0 < roofline.read_bandwidth(threads) < 10000
    sums = roofline._probes(threads)._sink.view(np.uint32)
    assert int(sums.sum(dtype=np.uint32)) == 0x01010101 * (2**22 // 4) % 2**32


@pytest.mark.parametrize("threads", [1, 2])
def test_peaks(threads: int) -> None:
    assert 0 < roofline.int8_peak(threads) < 100000
    assert 0 < roofline.float32_peak(threads) < 100000
    assert roofline._probes(threads)._done[0] % (2**15 * 32) == 0


def test_rows_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = roofline._Machine(2, ["rms_norm", "quantize"])
    for kernel in ("rms_norm", "quantize"):
        name, speed, unit, share = roofline._Model(machine, "q4_0", 1).rows(kernel, 8)
        assert (name, unit) == (f"{kernel}, 8 tokens", "GB/s")
        assert speed > 0
        assert share > 0


def test_weight_bytes_of_a_model() -> None:
    machine = roofline._Machine(1, ["quantize"])
    weights = 4096 * (4096 * 2 + 1024 * 2 + 14336 * 3)
    assert roofline._Model(machine, "q4_0", 2).weight_bytes == 2 * weights * 18 // 32
    assert roofline._Model(machine, "bfloat16", 1).weight_bytes == 2 * weights
