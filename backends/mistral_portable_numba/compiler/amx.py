"""AMX, products of tiles: LLVM IR of the functions `mp.tile*`, of the instruction set "amx".

A thread has eight tiles of up to 16 rows of 64 bytes: 0 to 3 hold sums, 4 to 7 factors. Names of functions end with the
numbers of their tiles, which are part of the instructions.

| function | does |
|---|---|
| mp.tiles(address) | gives the tiles their sizes, 64 bytes (`layouts.tile_sizes`) |
| mp.tiles_end() | ends the use of tiles: from then on a change of threads does not save them |
| mp.tile_zero.T() | T = 0 |
| mp.tile_load.T(address, stride) | reads T, whose rows lie `stride` bytes apart |
| mp.tile_store.T(address, stride) | writes T |
| mp.tile_bf16.C.A.B() | C += A @ B: bfloat16 A [m, k, 2] and B [k, n, 2], summed over k and 2; float32 C [m, n] |
| mp.tile_s8u8.C.A.B() | C += A @ B: bytes A [m, k, 4], signed, and B [k, n, 4], unsigned; int32 C [m, n] |
| mp.tile_s8s8.C.A.B() | the same of signed bytes |

A sum of bfloat16 products begins with 0 for each of the two columns of a pair; products are added from the first k to
the last, then the two sums to each other, then to C. Each addition rounds to nearest even, products are exact, and
denormal numbers are zeros (Intel's manual, volume 2, TDPBF16PS). So a sum does not depend on m and n.
"""

__all__ = ["FACTORS", "SUMS", "TILE_DEFINITIONS", "TILE_FEATURES", "TILE_FUNCTIONS"]

SUMS, FACTORS = range(4), range(4, 8)
"""Numbers of tiles."""

_PLACE = "i64 %address, i64 %stride"
_POINTER = "%p = inttoptr i64 %address to ptr"


def _define(name: str, parameters: str, *body: str) -> tuple[str, str]:
    lines = "".join(f"  {line}\n" for line in (*body, "ret void"))
    return name, f"define internal void @mp.{name}({parameters}) alwaysinline nounwind {{\n{lines}}}\n"


def _definitions() -> dict[str, str]:
    """LLVM IR by the name of the function."""
    made = [
        _define("tiles", "i64 %address", _POINTER, "call void @llvm.x86.ldtilecfg(ptr %p)"),
        _define("tiles_end", "", "call void @llvm.x86.tilerelease()"),
    ]
    for tile in (*SUMS, *FACTORS):
        made.append(_define(f"tile_zero.{tile}", "", f"call void @llvm.x86.tilezero(i8 {tile})"))
        for name, move in (("load", "tileloadd64"), ("store", "tilestored64")):
            instruction = f"call void @llvm.x86.{move}(i8 {tile}, ptr %p, i64 %stride)"
            made.append(_define(f"tile_{name}.{tile}", _PLACE, _POINTER, instruction))
    for kind, product in (("bf16", "tdpbf16ps"), ("s8u8", "tdpbsud"), ("s8s8", "tdpbssd")):
        for c, a, b in ((c, a, b) for c in SUMS for a in FACTORS for b in FACTORS if a != b):
            name = f"tile_{kind}.{c}.{a}.{b}"
            made.append(_define(name, "", f"call void @llvm.x86.{product}(i8 {c}, i8 {a}, i8 {b})"))
    return dict(made)


_DECLARATIONS = """declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.tdpbf16ps(i8 immarg, i8 immarg, i8 immarg)
declare void @llvm.x86.tdpbsud(i8 immarg, i8 immarg, i8 immarg)
declare void @llvm.x86.tdpbssd(i8 immarg, i8 immarg, i8 immarg)
"""

_DEFINITIONS = _definitions()

TILE_FUNCTIONS = tuple(_DEFINITIONS)
"""Their names, without `mp.`."""

TILE_DEFINITIONS = _DECLARATIONS + "".join(_DEFINITIONS.values())
TILE_FEATURES = "+amx-tile,+amx-bf16,+amx-int8"
"""Features, in LLVM's terms, beside those of AVX-512."""
