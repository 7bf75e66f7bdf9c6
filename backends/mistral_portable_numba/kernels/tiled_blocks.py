"""Linear layers over quantized weights for many tokens, by AMX.

The left factor is up to 16 tokens, the right one a tile of weights, so that in a tile of sums, too, a lane is a row.
128 columns of a pair of tiles are unpacked to scratch, for all tokens, while those before are multiplied. Integers are
exact, and floats are added in the order of `FloatScales` and `IntegerScales`, so the bits are theirs.
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
    SHARE,
    TILED_GROUP,
    TILED_SUMS,
    activation_sums,
    linear_record,
    split_record,
)

__all__ = ["tiled_products"]


def tiled_products(fmt: Format) -> Any:
    """The function that multiplies some pairs of tiles with more than FEW_TILED tokens, 128 columns after 128: a chunk.

    Its arguments: the pairs' address, their number, blocks in a row, tokens, then the addresses and the bytes per token
    of activations, of their sums and of out, and scratch. It is made of

    take_apart(coming): unpack a chunk, of a pair where blocks have 256 columns, else of a tile;
    factors_of(at, subs): the factors that scale the sums of `subs` times 32 columns, at most a chunk;
    multiply(at, subs, n, x, factors, before, due, coming): multiply these columns with n tokens into tiles 0 to 3;
    meanwhile scale the sums of the last product, `before`, prefetch weights from `due` on, unless it is 0, and unpack
    `coming`;
    row(t, factors, before): scale the sums of token t.

    before holds what belongs to a product: its tokens and subs; the addresses of its sums, of the activations' scales
    and sums, and of float32 [tokens, 2, 16], to which the scaled sums are added. coming: a block's address, or 0; the
    number of the chunk; its subs; and where it is unpacked to. Sums are scaled for 8 tokens or 16, whatever their
    number: what stands beside theirs is read, as buffers have whole groups of 8, and not kept.

    AMX and the vector units work side by side only where their instructions alternate, as few of these wait at a time.
    """
    layout, tile_bytes, large = fmt.layout, 16 * fmt.layout.bytes, fmt.layout.columns == 256
    take_apart, factors_of, multiply, row = (scaled_by_integers if large else scaled_by_floats)(fmt)
    columns, size, u_sub = layout.columns, 64 if large else 32, activation_sums(1, layout.step, False).itemsize
    sides, record = (1, split_record(layout)) if large else (2, 4 * linear_record(layout))
    chunk_bytes = tile_bytes if large else 8 * tile_bytes  # of a pair, for 128 columns
    side_bytes = 0 if large else chunk_bytes // 2

    @inlined
    def chunk_of(p: Any, blocks: Any, chunk: Any, pair: Any) -> Any:
        """The address of the first block with columns of a chunk: two chunks of a pair share two large blocks."""
        return p + 2 * tile_bytes * (blocks * pair + (chunk // 2 if large else 4 * chunk))

    @inlined
    def due_of(p: Any, blocks: Any, chunk: Any, pair: Any) -> Any:
        """The address of a chunk's bytes, or of as many."""
        return chunk_of(p, blocks, chunk, pair) + (chunk_bytes * (chunk % 2) if large else 0)

    @inlined
    def coming_of(p: Any, chunk: Any, subs: Any, side: Any, at: Any) -> Any:
        """Columns of a chunk that are to be unpacked, or none if p is 0."""
        left = min(4, subs - 4 * chunk) if p != 0 else 0
        return (p if large else p + tile_bytes * side), chunk, left, at + 64 * side

    @inlined
    def multiply_chunk(
        unpacked: Any,
        chunk: Any,
        subs: Any,
        tokens: Any,
        x: Any,
        xs: Any,
        u: Any,
        us: Any,
        scratch: Any,
        to: Any,
        due: Any,
        next_p: Any,
        next_chunk: Any,
        next_at: Any,
        factors: Any,
        before: Any,
    ) -> Any:
        """Multiply 128 columns of a pair that were unpacked with all tokens, and add the products to `to`.

        subs: those of a row. next_p, next_chunk, next_at: what is unpacked meanwhile. Returns the factors and the
        product whose sums are left to scale.
        """
        last, ints, some, place = tokens % TILED_GROUP, scratch + 128, min(4, subs - 4 * chunk), 4 * chunk
        codes = 32 * ((subs + 3) // 4 * 4)
        for first in range(0, tokens, TILED_GROUP):
            n, group, more = min(TILED_GROUP, tokens - first), x + first * xs, first + TILED_GROUP < tokens
            if n == last and tokens > last:
                begin_tiles(scratch + 64)
            inputs, sums = group + 32 * n * place, u + first * us + u_sub * n * place
            for side in range(sides):
                own, its_to = unpacked + 64 * side, to + 128 * first + 64 * side
                part = due + side_bytes * side if first == 0 else 0
                coming = coming_of(0 if more else next_p, next_chunk, subs, side, next_at)
                multiply(own, some, n, inputs, factors, before, part, coming)
                store_sums(ints)
                factors = factors_of(own, some)
                before = n, some, ints, group + n * (codes + place), sums, its_to
        if last > 0 and tokens > last:
            begin_tiles(scratch)
        return factors, before

    @inlined
    def products(
        p: Any, pairs: Any, blocks: Any, count: Any, x: Any, xs: Any, u: Any, us: Any, out: Any, os: Any, scratch: Any
    ) -> None:
        subs, sums = blocks * columns // 32, scratch + TILED_SUMS
        chunks, unpacked = (subs + 3) // 4, sums + 128 * SHARE * BLOCK_TOKENS
        write_sizes(scratch, TILED_GROUP, size)
        for t in range(0, count, BLOCK_TOKENS):
            tokens, own, its_u = min(BLOCK_TOKENS, count - t), x + t * xs, u + t * us
            write_sizes(scratch + 64, tokens % TILED_GROUP, size)
            begin_tiles(scratch if tokens >= TILED_GROUP else scratch + 64)
            for side in range(sides):
                take_apart(coming_of(p, 0, subs, side, unpacked))
            nothing = 0, 4, scratch + 128, x, u, sums
            factors, before = factors_of(unpacked, 1), nothing
            chunk, pair = 0, 0
            for i in range(chunks * pairs):
                next_chunk, next_pair = (chunk, pair + 1) if pair + 1 < pairs else (chunk + 1, 0)
                next_p = chunk_of(p, blocks, next_chunk, next_pair) if i + 1 < chunks * pairs else 0
                here, there = unpacked + record * (i % 2), unpacked + record * ((i + 1) % 2)
                to = sums + 128 * BLOCK_TOKENS * pair
                if chunk == 0:
                    for r in range(2 * tokens):
                        store_f32(to + 64 * r, all_f32(0.0))
                factors, before = multiply_chunk(
                    here,
                    chunk,
                    subs,
                    tokens,
                    own,
                    xs,
                    its_u,
                    us,
                    scratch,
                    to,
                    due_of(p, blocks, chunk + 2, pair),
                    next_p,
                    next_chunk,
                    there,
                    factors,
                    before,
                )
                if chunk == chunks - 1:
                    for r in range(before[0]):
                        row(r, factors, before)
                    before = nothing
                    for r in range(tokens):
                        at, its_out = to + 128 * r, out + (t + r) * os + 128 * pair
                        store_f32(its_out, load_f32(at))
                        store_f32(its_out + 64, load_f32(at + 64))
                chunk, pair = next_chunk, next_pair
        end_tiles()

    return products
