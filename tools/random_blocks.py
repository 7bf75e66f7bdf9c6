"""Random packed weights, generated at the speed of memory, as real quantization would take minutes."""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from numpy.typing import NDArray

__all__ = ["random_blocks"]

# Byte offsets of the float16 scales in a block, and factors of the scales that centre the weights near zero.
_SCALES: dict[str, dict[int, float]] = {
    "Q4_0": {0: 1},
    "Q4_1": {0: 1, 2: -7.5},
    "Q5_0": {0: 1},
    "Q5_1": {0: 1, 2: -15.5},
    "Q8_0": {0: 1},
    "Q2_K": {80: 1, 82: 1.5},
    "Q3_K": {108: 1},
    "Q4_K": {0: 1, 2: 7.5},
    "Q5_K": {0: 1, 2: 15.5},
    "Q6_K": {208: 1},
    "IQ4_NL": {0: 1},
    "IQ4_XS": {0: 1},
}


def random_blocks(kind: str, count: int, std: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """`count` packed blocks of a ggml type, uint8 [count, bytes], with values near 0 of standard deviation `std`.

    Codes are random bits; scales fit `std`. Float types, which have no scales, hold rounded normal values.
    """
    type = GGMLQuantizationType[kind]
    length, size = GGML_QUANT_SIZES[type]
    if kind not in _SCALES:
        return quants.quantize(rng.normal(0, std, (count, length)).astype(np.float32), type).view(np.uint8)
    blocks = rng.integers(0, 256, (count, size), np.uint8)
    _set_scales(kind, blocks, np.ones(count))
    spread = quants.dequantize(blocks[:4096], type).std()
    _set_scales(kind, blocks, rng.uniform(0.5, 1.5, count) * std / spread)
    return blocks


def _set_scales(kind: str, blocks: NDArray[np.uint8], scales: NDArray[np.float64]) -> None:
    for offset, factor in _SCALES[kind].items():
        blocks[:, offset : offset + 2] = (scales * factor).astype(np.float16)[:, None].view(np.uint8)
