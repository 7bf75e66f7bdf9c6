"""Every kernel compiles for ARM on any machine, and its code has the instructions that it is designed for."""

import re
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from mistral_portable_numba.compiler.isa import ISAS
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_f16
from mistral_portable_numba.compiler.toolchain import assembly, lower
from mistral_portable_numba.kernels.registry import MODULES
from mistral_portable_numba.layouts import BLOCKS
from numba_ir import NEON, TILED, apple_listing, arm_object

TABLES = ("iq4_nl", "iq4_xs")
INSTRUCTIONS: dict[str, set[str]] = {
    **{f"linear_{kind}": {"sdot", "fmla", "fcvtl", *(["tbl"] if kind in TABLES else [])} for kind in BLOCKS},
    "linear_float32": {"fmla"},
    "linear_float16": {"fmla", "fcvtl"},
    "linear_bfloat16": {"fmla"},
    "attention_float32": {"fmla"},
    "attention_float16": {"fmla", "fcvtl"},
    "attention_q8_0": {"sdot", "fmla", "fcvtl"},
    "store_keys_float16": {"fcvt"},
    "store_values_float16": {"fcvt"},
    "silu_mul": {"fmla"},
    "tape": {"ldaddal", "yield"},
}
SYMBOL = np.dtype(
    [("name", "<u4"), ("kind", "u1"), ("how", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)


def instructions(listing: str) -> set[str]:
    return set(re.findall(r"^\t([a-z]\w*)", listing, re.M))


# The twelve encoders share their parts, so one of each kind is enough.
ENCODERS = {"encode_q4_0", "encode_q5_1", "encode_q4_k", "encode_iq4_xs"}
NAMES = [name for name in MODULES if (not name.startswith("encode_") or name in ENCODERS) and name not in TILED]


def symbols(elf: bytes) -> tuple[set[str], set[str]]:
    """The global symbols of an object file: those that it defines, and those that it needs."""
    parts = {section.name(): section.data() for section in llvm.ObjectFileRef.from_data(elf).sections()}
    names, found = parts[b".strtab"], np.frombuffer(parts[b".symtab"], SYMBOL)
    kinds: tuple[set[str], set[str]] = set(), set()
    for symbol in found[found["kind"] >> 4 == 1]:
        begin = symbol["name"]
        kinds[0 if symbol["section"] else 1].add(names[begin : names.index(b"\0", begin)].decode())
    return kinds


@pytest.mark.parametrize("name", NAMES)
def test_linux_objects_need_no_other_symbols(name: str) -> None:
    defined, needed = symbols(arm_object(name).read_bytes())
    assert name in defined
    assert not needed


@pytest.mark.parametrize("name", NAMES)
def test_apple_assembly_has_the_instructions(name: str) -> None:
    listing = apple_listing(name)
    assert INSTRUCTIONS.get(name, set()) <= instructions(listing)
    calls = set(re.findall(r"^\tbl?\t([^L\s]\S*)", listing, re.M))
    assert calls <= set(re.findall(r"^(\S+):", listing, re.M)), "calls a function that is not in this file"


def test_vectors_are_narrowed_to_float16_by_one_instruction() -> None:
    def kernel(args: Any, thread: Any, threads: Any) -> None:
        store_f16(args, load_f32(args))

    assert "fcvtn" in instructions(assembly("narrow", lower("narrow", kernel), NEON, "arm64-apple-darwin"))


def test_i8mm_has_products_of_squares() -> None:
    assert {"smmla", "sdot", "fmla"} <= instructions(apple_listing("linear_q4_0", ISAS["neon_i8mm"]))
