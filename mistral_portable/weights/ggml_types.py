"""ggml's types of tensors that can be read: numbers, names and blocks, the same as in `gguf`.

Importing any part of `gguf` imports all of it, and mistral-common: 0.3 s before the header of a file could be read.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

__all__ = ["BLOCK_SIZES", "AnyType", "GGMLType", "stored_type"]


class GGMLType(IntEnum):
    """A type that can be read, by the number that files have for it."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23
    BF16 = 30


AnyType: TypeAlias = "GGMLType | GGMLQuantizationType"
"""A type, as this module or as `gguf` has it: numbers and names are the same."""

BLOCK_SIZES: Mapping[GGMLType, tuple[int, int]] = {
    GGMLType.F32: (1, 4),
    GGMLType.F16: (1, 2),
    GGMLType.BF16: (1, 2),
    GGMLType.Q4_0: (32, 18),
    GGMLType.Q4_1: (32, 20),
    GGMLType.Q5_0: (32, 22),
    GGMLType.Q5_1: (32, 24),
    GGMLType.Q8_0: (32, 34),
    GGMLType.Q2_K: (256, 84),
    GGMLType.Q3_K: (256, 110),
    GGMLType.Q4_K: (256, 144),
    GGMLType.Q5_K: (256, 176),
    GGMLType.Q6_K: (256, 210),
    GGMLType.IQ4_NL: (32, 18),
    GGMLType.IQ4_XS: (256, 136),
}
"""The weights and the bytes of a block."""


def stored_type(number: int) -> tuple[AnyType, int, int]:
    """The type of a number, and the weights and the bytes of a block; `gguf` is asked for what cannot be read.

    >>> stored_type(12)
    (<GGMLType.Q4_K: 12>, 256, 144)

    Raises ValueError if ggml has no such type.
    """
    if number in BLOCK_SIZES:
        return GGMLType(number), *BLOCK_SIZES[GGMLType(number)]
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGMLQuantizationType(number), *GGML_QUANT_SIZES[GGMLQuantizationType(number)]
