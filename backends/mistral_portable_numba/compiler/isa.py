"""The instruction sets, each with its definitions (LLVM IR) of the functions `mp.*` that kernels call.

| function | computes |
|---|---|
| mp.dot4(acc, w, x) | acc + the sums of four products; w 0..127, x -127..127 |
| mp.add_pairs(words, w, x) | words + the sums of two products, in 16 bits (`Isa.words`) |
| mp.signed_pairs(w, x) | the sums of two products in 16 bits, of weights from mp.signed; both -127..127 |
| mp.add_words(acc, words, factors) | acc + the sums of two products of signed 16-bit words (`words` or `tiles`) |
| mp.square(acc, w, x) | acc + the sums of eight products: w int8 [8, 8], x int8 [2, 8], four times (`squares`) |
| mp.signed_zero() | 128 where products take unsigned weights, else 0 |
| mp.signed(w) | weights -128..127 in the form that dot4_signed takes: with mp.signed_zero() added |
| mp.dot4_signed(acc, w, x) | acc + the sums of four products of such weights and x, -127..127 |
| mp.pin(acc) | acc; loads and prefetches stay on the side of it where they are written |
| mp.lookup(index, table) | table[index] of 64 bytes; index 0..15 |
| mp.widen, mp.narrow | float16 to float32 and back, to nearest even |
| mp.pause | a hint in spin loops |
| mp.pointer | an address as a pointer |
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mistral_portable_numba.compiler.amx import TILE_DEFINITIONS, TILE_FEATURES

__all__ = ["FUNCTIONS", "ISAS", "Isa"]

FUNCTIONS = (
    "dot4",
    "dot4_signed",
    "square",
    "add_pairs",
    "signed_pairs",
    "add_words",
    "signed",
    "signed_zero",
    "pin",
    "lookup",
    "widen",
    "narrow",
    "pause",
    "pointer",
)


@dataclass(frozen=True)
class Isa:
    """An instruction set.

    name: its key in ISAS. title: its name for the command `backends`. cpu, features: LLVM's target. functions: LLVM IR
    that defines `mp.*`. tokens: those of a group (`layouts.token_group`). at_once: those of a group whose sums fit into
    the registers, beside weights.
    words: whether the fastest products of bytes are pairs of them, added in 16 bits, rather than four, added in 32.
    tiles: whether it has the functions of `amx.py`, for many tokens.
    squares: whether it has mp.square, for many tokens (`simd/squares.py`).
    """

    name: str
    title: str
    cpu: str
    features: str
    functions: str
    tokens: int
    at_once: int
    words: bool = False
    tiles: bool = False
    squares: bool = False

    @property
    def needs(self) -> set[str]:
        """The features that a machine must have, in LLVM's terms."""
        return {feature[1:] for feature in self.features.split(",") if feature.startswith("+")}


def _constant(kind: str, value: int | float, count: int) -> str:
    return "<" + ", ".join([f"{kind} {value}"] * count) + ">"


def _lanes(start: int, count: int) -> str:
    return "<" + ", ".join(f"i32 {lane}" for lane in range(start, start + count)) + ">"


def _function(result: str, name: str, parameters: str, body: str) -> str:
    return f"define internal {result} @mp.{name}({parameters}) alwaysinline nounwind {{\n{body}\n}}\n"


def _joined(parts: Sequence[str], kind: str, count: int) -> list[str]:
    """Join vectors of `count` lanes to one, and return it."""
    body: list[str] = []
    while len(parts) > 1:
        half, count = f"<{count} x {kind}>", 2 * count
        body += [
            f"  {a}.{count} = shufflevector {half} {a}, {half} {b}, <{count} x i32> {_lanes(0, count)}"
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        parts = [f"{a}.{count}" for a in parts[::2]]
    return [*body, f"  ret <{count} x {kind}> {parts[0]}"]


def _pin(register: str, parts: int) -> str:
    """mp.pin by assembly without an instruction, which the compiler moves nothing across.

    register: the constraint for a vector of 16 / parts lanes.
    """
    lanes = 16 // parts
    body = [
        line
        for p in range(parts)
        for line in (
            f"  %a{p} = shufflevector <16 x i32> %a, <16 x i32> poison, <{lanes} x i32> {_lanes(p * lanes, lanes)}",
            f'  %r{p} = call <{lanes} x i32> asm sideeffect "", "={register},0"(<{lanes} x i32> %a{p})',
        )
    ]
    body += _joined([f"%r{p}" for p in range(parts)], "i32", lanes)
    return _function("<16 x i32>", "pin", "<16 x i32> %a", "\n".join(body))


def _dot(name: str, declarations: str, part: str, parts: int) -> str:
    """A function (acc, w, x) over 16 lanes, from a body that computes %r from %a, %w and %x over 16 / parts lanes."""
    lanes = 16 // parts
    small = f"<{lanes} x i32> %a, <{4 * lanes} x i8> %w, <{4 * lanes} x i8> %x"
    result = _function(f"<{lanes} x i32>", f"{name}.part", small, f"{part}\n  ret <{lanes} x i32> %r")
    body, joined = [], []
    for p in range(parts):
        for value, kind, count in (("a", "i32", lanes), ("w", "i8", 4 * lanes), ("x", "i8", 4 * lanes)):
            vector, mask = f"<{count * parts} x {kind}>", _lanes(p * count, count)
            body.append(f"  %{value}{p} = shufflevector {vector} %{value}, {vector} poison, <{count} x i32> {mask}")
        body.append(
            f"  %r{p} = call <{lanes} x i32> @mp.{name}.part(<{lanes} x i32> %a{p}, <{4 * lanes} x i8> %w{p}, "
            f"<{4 * lanes} x i8> %x{p})"
        )
        joined.append(f"%r{p}")
    body += _joined(joined, "i32", lanes)
    return declarations + result + _function("<16 x i32>", name, _ACC_W_X, "\n".join(body))


_BYTES, _ACC_W_X = "<64 x i8>", "<16 x i32> %a, <64 x i8> %w, <64 x i8> %x"


def _signed_zero(value: int) -> str:
    """Definitions of mp.signed_zero and mp.signed. Adding 128 flips the sign bit; adding 0 does nothing."""
    flip = f"  %r = xor {_BYTES} %w, {_constant('i8', -value, 64)}\n  ret {_BYTES} %r"
    return _function("i32", "signed_zero", "", f"  ret i32 {value}") + _function(
        _BYTES, "signed", f"{_BYTES} %w", flip if value else f"  ret {_BYTES} %w"
    )


def _signed_as_dot4(zero: int) -> str:
    """Definitions for instruction sets whose mp.dot4 accepts the bytes that mp.signed returns, for all weights.

    vpdpbusd takes unsigned bytes, NEON's sdot signed ones.
    """
    return _signed_zero(zero) + _function(
        "<16 x i32>",
        "dot4_signed",
        _ACC_W_X,
        f"  %r = call <16 x i32> @mp.dot4({_ACC_W_X})\n  ret <16 x i32> %r",
    )


_DOT_AVX512_VNNI = _dot(
    "dot4",
    "declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)\n",
    "  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %a, <64 x i8> %w, <64 x i8> %x)",
    1,
) + _signed_as_dot4(128)

_ADD_WORDS_AVX512 = (
    "declare <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32>, <32 x i16>, <32 x i16>)\n"
    + _function(
        "<16 x i32>",
        "add_words",
        "<16 x i32> %a, <16 x i32> %w, <16 x i32> %f",
        """  %v = bitcast <16 x i32> %w to <32 x i16>
  %g = bitcast <16 x i32> %f to <32 x i16>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpwssd.512(<16 x i32> %a, <32 x i16> %v, <32 x i16> %g)
  ret <16 x i32> %r""",
    )
)

_DOT_AVX_VNNI = _dot(
    "dot4",
    "declare <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32>, <32 x i8>, <32 x i8>)\n",
    "  %r = call <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32> %a, <32 x i8> %w, <32 x i8> %x)",
    2,
) + _signed_as_dot4(128)

_MADD = f"""  %s = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %p, <16 x i16> {_constant("i16", 1, 16)})
  %r = add <8 x i32> %a, %s"""


def _halves(name: str, result: str, parameters: Sequence[tuple[str, str, int]], body: str) -> str:
    """A function over 512 bits from IR of one half of them, which computes %r of type <8 x i32>.

    parameters: the names, the types of elements and the numbers of elements in a half.
    """

    def of(scale: int) -> str:
        return ", ".join(f"<{scale * count} x {kind}> %{value}" for value, kind, count in parameters)

    lines, halves = [], []
    for h in range(2):
        lines += [
            f"  %{value}{h} = shufflevector <{2 * count} x {kind}> %{value}, <{2 * count} x {kind}> poison, "
            f"<{count} x i32> {_lanes(h * count, count)}"
            for value, kind, count in parameters
        ]
        given = ", ".join(f"<{count} x {kind}> %{value}{h}" for value, kind, count in parameters)
        lines.append(f"  %r{h} = call <8 x i32> @mp.{name}.half({given})")
        halves.append(f"%r{h}")
    lines += _joined(halves, "i32", 8)
    half = _function("<8 x i32>", f"{name}.half", of(1), f"{body}\n  ret <8 x i32> %r")
    return half + _function(result, name, of(2), "\n".join(lines))


# pmaddubsw adds two products in 16 bits: at most 2 * 127 * 127, or 2 * 128 * 127 with signed weights, so it never
# saturates. With signed weights |w| is the unsigned operand, and x takes the sign of w; in signed_pairs, whose weights
# are never -128, |x| is, which all weights share, and w takes the sign of x.
_W, _X = ("w", "i8", 32), ("x", "i8", 32)
_WORDS_AVX2 = (
    _halves(
        "add_pairs",
        "<16 x i32>",
        [("a", "i32", 8), _W, _X],
        """  %b = bitcast <8 x i32> %a to <16 x i16>
  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %w, <32 x i8> %x)
  %s = add <16 x i16> %b, %p
  %r = bitcast <16 x i16> %s to <8 x i32>""",
    )
    + _halves(
        "signed_pairs",
        "<16 x i32>",
        [_W, _X],
        """  %u = call <32 x i8> @llvm.abs.v32i8(<32 x i8> %x, i1 false)
  %y = call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> %w, <32 x i8> %x)
  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %u, <32 x i8> %y)
  %r = bitcast <16 x i16> %p to <8 x i32>""",
    )
    + _halves(
        "add_words",
        "<16 x i32>",
        [("a", "i32", 8), ("w", "i32", 8), ("f", "i32", 8)],
        """  %v = bitcast <8 x i32> %w to <16 x i16>
  %g = bitcast <8 x i32> %f to <16 x i16>
  %s = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %v, <16 x i16> %g)
  %r = add <8 x i32> %a, %s""",
    )
)

_DOT_AVX2 = (
    _dot(
        "dot4",
        """declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)
""",
        f"  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %w, <32 x i8> %x)\n{_MADD}",
        2,
    )
    + _dot(
        "dot4_signed",
        "",
        f"""  %u = call <32 x i8> @llvm.abs.v32i8(<32 x i8> %w, i1 false)
  %y = call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> %x, <32 x i8> %w)
  %p = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %u, <32 x i8> %y)
{_MADD}""",
        2,
    )
    + _WORDS_AVX2
    + _signed_zero(0)
)


_DOT_AARCH64 = _dot(
    "dot4",
    "declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n",
    "  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %a, <16 x i8> %w, <16 x i8> %x)",
    4,
) + _signed_as_dot4(0)

_SQUARE_AARCH64 = _dot(
    "square",
    "declare <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)\n",
    "  %r = call <4 x i32> @llvm.aarch64.neon.smmla.v4i32.v16i8(<4 x i32> %a, <16 x i8> %w, <16 x i8> %x)",
    4,
)


def _strided(first: int) -> str:
    return "<" + ", ".join(f"i32 {first + 4 * lane}" for lane in range(4)) + ">"


_DOT_GENERIC = _dot(
    "dot4",
    "",
    """  %w32 = sext <16 x i8> %w to <16 x i32>
  %x32 = sext <16 x i8> %x to <16 x i32>
  %p = mul <16 x i32> %w32, %x32
"""
    + "".join(f"  %p{k} = shufflevector <16 x i32> %p, <16 x i32> poison, <4 x i32> {_strided(k)}\n" for k in range(4))
    + """  %s0 = add <4 x i32> %p0, %p1
  %s1 = add <4 x i32> %p2, %p3
  %s = add <4 x i32> %s0, %s1
  %r = add <4 x i32> %a, %s""",
    4,
) + _signed_as_dot4(0)


def _lookup(declarations: str, instruction: str, parts: int, register: str | None = None) -> str:
    """Table lookup by an instruction that computes %rP from the indices %iP and %t, the table in each 16 bytes.

    register: its constraint, where registers are few: %t then comes out of empty assembly. LLVM would load the table, a
    constant, anew for each lookup.
    """
    count = 64 // parts
    sixteen = ", ".join(f"i32 {lane % 16}" for lane in range(count))
    table = f"shufflevector <16 x i8> %table, <16 x i8> poison, <{count} x i32> <{sixteen}>"
    kept = f'call <{count} x i8> asm "", "={register},0"(<{count} x i8> %u) nounwind memory(none)'
    body = [f"  %u = {table}", f"  %t = {kept}"] if register else [f"  %t = {table}"]
    for p in range(parts):
        body.append(
            f"  %i{p} = shufflevector <64 x i8> %index, <64 x i8> poison, <{count} x i32> {_lanes(p * count, count)}"
        )
        body.append(instruction.format(p=p))
    body += _joined([f"%r{p}" for p in range(parts)], "i8", count)
    return declarations + _function("<64 x i8>", "lookup", "<64 x i8> %index, <16 x i8> %table", "\n".join(body))


_PIN_AVX512, _PIN_AVX2, _PIN_AARCH64 = _pin("v", 1), _pin("x", 2), _pin("w", 4)

_NO_PIN = _function("<16 x i32>", "pin", "<16 x i32> %a", "  ret <16 x i32> %a")

_LOOKUP_AVX512 = _lookup(
    "declare <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8>, <64 x i8>)\n",
    "  %r{p} = call <64 x i8> @llvm.x86.avx512.pshuf.b.512(<64 x i8> %t, <64 x i8> %i{p})",
    1,
)
_LOOKUP_AVX2 = _lookup(
    "declare <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8>, <32 x i8>)\n",
    "  %r{p} = call <32 x i8> @llvm.x86.avx2.pshuf.b(<32 x i8> %t, <32 x i8> %i{p})",
    2,
    "x",
)
_LOOKUP_AARCH64 = _lookup(
    "declare <16 x i8> @llvm.aarch64.neon.tbl1.v16i8(<16 x i8>, <16 x i8>)\n",
    "  %r{p} = call <16 x i8> @llvm.aarch64.neon.tbl1.v16i8(<16 x i8> %t, <16 x i8> %i{p})",
    4,
)


def _lookup_by_comparison() -> str:
    body, last = [], "zeroinitializer"
    for value in range(16):
        body += [
            f"  %t{value} = shufflevector <16 x i8> %table, <16 x i8> poison, <64 x i32> {_constant('i32', value, 64)}",
            f"  %c{value} = icmp eq <64 x i8> %index, {_constant('i8', value, 64)}",
            f"  %r{value} = select <64 x i1> %c{value}, <64 x i8> %t{value}, <64 x i8> {last}",
        ]
        last = f"%r{value}"
    body.append(f"  ret <64 x i8> {last}")
    return _function("<64 x i8>", "lookup", "<64 x i8> %index, <16 x i8> %table", "\n".join(body))


_HALF_NATIVE = _function(
    "<16 x float>",
    "widen",
    "<16 x i16> %x",
    """  %h = bitcast <16 x i16> %x to <16 x half>
  %r = fpext <16 x half> %h to <16 x float>
  ret <16 x float> %r""",
) + _function(
    "<16 x i16>",
    "narrow",
    "<16 x float> %x",
    """  %h = fptrunc <16 x float> %x to <16 x half>
  %r = bitcast <16 x half> %h to <16 x i16>
  ret <16 x i16> %r""",
)


def _half_by_bits() -> str:
    """Float16 conversions without hardware: a product with 2^112 rebiases the exponent, exactly for denormals too."""

    def c(value: int) -> str:
        return _constant("i32", value, 16)

    v = "<16 x i32>"
    widen = f"""  %w = zext <16 x i16> %x to {v}
  %sign0 = and {v} %w, {c(0x8000)}
  %sign = shl {v} %sign0, {c(16)}
  %magnitude = and {v} %w, {c(0x7FFF)}
  %shifted = shl {v} %magnitude, {c(13)}
  %small = bitcast {v} %shifted to <16 x float>
  %scaled = fmul <16 x float> %small, {_constant("float", 5.192296858534828e33, 16)}
  %bits = bitcast <16 x float> %scaled to {v}
  %special = icmp uge {v} %magnitude, {c(0x7C00)}
  %marked = or {v} %bits, {c(0x7F800000)}
  %chosen = select <16 x i1> %special, {v} %marked, {v} %bits
  %signed = or {v} %chosen, %sign
  %r = bitcast {v} %signed to <16 x float>
  ret <16 x float> %r"""
    narrow = f"""  %bits = bitcast <16 x float> %x to {v}
  %sign0 = lshr {v} %bits, {c(16)}
  %sign = and {v} %sign0, {c(0x8000)}
  %abs = and {v} %bits, {c(0x7FFFFFFF)}
  %odd0 = lshr {v} %abs, {c(13)}
  %odd = and {v} %odd0, {c(1)}
  %rebiased = sub {v} %abs, {c((112 << 23) - 0xFFF)}
  %even = add {v} %rebiased, %odd
  %normal = lshr {v} %even, {c(13)}
  %f = bitcast {v} %abs to <16 x float>
  %aligned = fadd <16 x float> %f, {_constant("float", 0.5, 16)}
  %aligned.bits = bitcast <16 x float> %aligned to {v}
  %denormal = sub {v} %aligned.bits, {c(0x3F000000)}
  %is.denormal = icmp ult {v} %abs, {c(0x38800000)}
  %finite = select <16 x i1> %is.denormal, {v} %denormal, {v} %normal
  %is.large = icmp uge {v} %abs, {c(0x47800000)}
  %bounded = select <16 x i1> %is.large, {v} {c(0x7C00)}, {v} %finite
  %is.nan = icmp ugt {v} %abs, {c(0x7F800000)}
  %chosen = select <16 x i1> %is.nan, {v} {c(0x7E00)}, {v} %bounded
  %signed = or {v} %chosen, %sign
  %r = trunc {v} %signed to <16 x i16>
  ret <16 x i16> %r"""
    return _function("<16 x float>", "widen", "<16 x i16> %x", widen) + _function(
        "<16 x i16>", "narrow", "<16 x float> %x", narrow
    )


_POINTER = _function("ptr", "pointer", "i64 %address", "  %r = inttoptr i64 %address to ptr\n  ret ptr %r")


def _pause(declaration: str, instruction: str) -> str:
    return _POINTER + declaration + _function("void", "pause", "", f"{instruction}  ret void")


_PAUSE_X86 = _pause("declare void @llvm.x86.sse2.pause()\n", "  call void @llvm.x86.sse2.pause()\n")
_PAUSE_AARCH64 = _pause("declare void @llvm.aarch64.hint(i32)\n", "  call void @llvm.aarch64.hint(i32 1)\n")

_X86_64_V3 = "+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt,+movbe"

_AVX512 = f"{_X86_64_V3},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512cd,+avx512vnni,-prefer-256-bit"
_FUNCTIONS_AVX512 = _DOT_AVX512_VNNI + _PIN_AVX512 + _LOOKUP_AVX512 + _HALF_NATIVE + _PAUSE_X86
_FUNCTIONS_NEON = _DOT_AARCH64 + _PIN_AARCH64 + _LOOKUP_AARCH64 + _HALF_NATIVE + _PAUSE_AARCH64

ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            "amx",
            "AVX-512 VNNI with AMX",
            "cascadelake",
            f"{_AVX512},{TILE_FEATURES}",
            _FUNCTIONS_AVX512 + _ADD_WORDS_AVX512 + TILE_DEFINITIONS,
            8,
            8,
            tiles=True,
        ),
        Isa("avx512_vnni", "AVX-512 VNNI", "cascadelake", _AVX512, _FUNCTIONS_AVX512, 8, 8),
        Isa(
            "avx_vnni",
            "AVX2 with AVX-VNNI",
            "alderlake",
            f"{_X86_64_V3},+avxvnni",
            _DOT_AVX_VNNI + _PIN_AVX2 + _LOOKUP_AVX2 + _HALF_NATIVE + _PAUSE_X86,
            4,
            2,
        ),
        Isa(
            "avx2",
            "AVX2",
            "haswell",
            _X86_64_V3,
            _DOT_AVX2 + _PIN_AVX2 + _LOOKUP_AVX2 + _HALF_NATIVE + _PAUSE_X86,
            4,
            2,
            words=True,
        ),
        Isa(
            "neon_i8mm",
            "NEON with i8mm",
            "neoverse-n1",
            "+neon,+dotprod,+i8mm",
            _FUNCTIONS_NEON + _SQUARE_AARCH64,
            4,
            4,
            squares=True,
        ),
        Isa("neon_dotprod", "NEON with dotprod", "neoverse-n1", "+neon,+dotprod", _FUNCTIONS_NEON, 4, 2),
        Isa(
            "generic",
            "any",
            "",
            "",
            _DOT_GENERIC + _NO_PIN + _lookup_by_comparison() + _half_by_bits() + _pause("", ""),
            4,
            2,
        ),
    )
}
"""Instruction sets by name, best first within an architecture."""
