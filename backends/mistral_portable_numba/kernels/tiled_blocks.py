"""Linear layers over quantized weights for many tokens, by AMX.

The left factor is up to 16 tokens, the right one a tile of weights, so that in a tile of sums, too, a lane is a row.
Some columns of a pair of tiles are unpacked to scratch, for all tokens. Integers are exact, and floats are added in the
order of `FloatScales` and `IntegerScales`, so the bits are theirs.
"""

from typing import Any

from mistral_portable_numba.compiler.simd.lanes import all_f32
from mistral_portable_numba.compiler.simd.load_store import load_f32, store_f32
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.compiler.simd.tiles import begin_tiles, end_tiles
from mistral_portable_numba.kernels.byte_tiles import store_sums, write_sizes
from mistral_portable_numba.kernels.formats import Format
from mistral_portable_numba.kernels.tiled_floats import scaled_by_floats
from mistral_portable_numba.kernels.tiled_integers import scaled_by_integers
from mistral_portable_numba.layouts import (
    BLOCK_TOKENS,
    CHUNK,
    SHARE,
    TILED_GROUP,
    TILED_SUMS,
    activation_sums,
    linear_record,
    split_record,
)

__all__ = ["tiled_products"]


def tiled_products(fmt: Format) -> Any:
    """The function that multiplies some pairs of tiles with more than FEW_TILED tokens, chunk after chunk of columns.

    Its arguments: the pairs' address, their number, blocks in a row, tokens, then the addresses and the bytes per token
    of activations, of their sums and of out, and scratch. It is made of

    take_apart(p, blocks, at): unpack blocks of a pair to scratch;
    factors_of(at, subs): the factors that scale the sums of `subs` times 32 columns, at most 128;
    multiply(at, subs, n, x, factors, before, due): multiply these columns with n tokens into tiles 0 to 3; meanwhile
    scale the sums of the last product, `before`, and prefetch weights from `due` on, unless it is 0;
    row(t, factors, before): scale the sums of token t.

    before holds what belongs to a product: its tokens and subs; the addresses of its sums, of the activations' scales
    and sums, and of float32 [tokens, 2, 16], to which the scaled sums are added; and two addresses to prefetch from, of
    inputs and of such float32.

    The last three work on a tile of the pair where blocks have 32 columns, on both where they have 256. AMX and the
    vector units work side by side only where their instructions alternate, as few of these wait at a time.
    """
    layout, tile_bytes, large = fmt.layout, 16 * fmt.layout.bytes, fmt.layout.columns == 256
    take_apart, factors_of, multiply, row = (scaled_by_integers if large else scaled_by_floats)(fmt)
    columns, chunk_blocks, size = layout.columns, 1 if large else CHUNK // 32, 64 if large else 32
    subs_of, u_sub = columns // 32, activation_sums(1, layout.step, False).itemsize
    sides, record = (1, split_record(layout)) if large else (2, 4 * linear_record(layout))
    due_bytes = tile_bytes if large else 4 * tile_bytes

    @inlined
    def multiply_chunk(
        unpacked: Any,
        sub: Any,
        subs: Any,
        tokens: Any,
        x: Any,
        xs: Any,
        codes: Any,
        u: Any,
        us: Any,
        scratch: Any,
        to: Any,
        due: Any,
    ) -> None:
        """Multiply what was unpacked, `subs` times 32 columns from `sub` on, with all tokens, and add it to `to`.

        codes: bytes of a token's codes.
        """
        each, last, ints = (subs + 3) // 4, tokens % TILED_GROUP, scratch + 128
        factors, before = factors_of(unpacked, 1), (0, 4, ints, x, u, to, x, to)
        for first in range(0, tokens, TILED_GROUP):
            n, group = min(TILED_GROUP, tokens - first), x + first * xs
            if n == last and tokens > last:
                begin_tiles(scratch + 64)
            for r in range(each):
                some, place = min(4, subs - 4 * r), sub + 4 * r
                for side in range(sides):
                    own = unpacked + record * r + 64 * side
                    part = due + due_bytes * (sides * r + side) if first == 0 else 0
                    multiply(own, some, n, group + 32 * n * place, factors, before, part)
                    store_sums(ints)
                    scales, sums = group + n * (codes + place), u + first * us + u_sub * n * place
                    its_to = to + 128 * first + 64 * side
                    due_x = group + TILED_GROUP * xs + 512 * place + 1024 * side
                    due_out = its_to + 128 * TILED_GROUP + (64 if sides == 1 and r % 2 else 0)
                    factors, before = factors_of(own, some), (n, some, ints, scales, sums, its_to, due_x, due_out)
        for t in range(before[0]):
            row(t, factors, before)
        if last > 0 and tokens > last:
            begin_tiles(scratch)

    @inlined
    def products(
        p: Any, pairs: Any, blocks: Any, count: Any, x: Any, xs: Any, u: Any, us: Any, out: Any, os: Any, scratch: Any
    ) -> None:
        row_bytes, codes = blocks * tile_bytes, 128 * ((blocks * columns + 127) // 128)
        sums = scratch + TILED_SUMS
        unpacked = sums + 128 * SHARE * BLOCK_TOKENS
        write_sizes(scratch, TILED_GROUP, size)
        for t in range(0, count, BLOCK_TOKENS):
            tokens, own, its_u = min(BLOCK_TOKENS, count - t), x + t * xs, u + t * us
            write_sizes(scratch + 64, tokens % TILED_GROUP, size)
            begin_tiles(scratch if tokens >= TILED_GROUP else scratch + 64)
            for first in range(0, blocks, chunk_blocks):
                some = min(chunk_blocks, blocks - first)
                for pair in range(pairs):
                    at, to = p + 2 * (row_bytes * pair + tile_bytes * first), sums + 128 * BLOCK_TOKENS * pair
                    due = at + 2 * row_bytes if pair + 1 < pairs else p + 2 * tile_bytes * (first + some)
                    take_apart(at, some, unpacked)
                    if first == 0:
                        for row in range(2 * tokens):
                            store_f32(to + 64 * row, all_f32(0.0))
                    multiply_chunk(
                        unpacked, first * subs_of, some * subs_of, tokens, own, xs, codes, its_u, us, scratch, to, due
                    )
            for pair in range(pairs):
                for row in range(tokens):
                    at, to = sums + 128 * (BLOCK_TOKENS * pair + row), out + (t + row) * os + 128 * pair
                    store_f32(to, load_f32(at))
                    store_f32(to + 64, load_f32(at + 64))
        end_tiles()

    return products
