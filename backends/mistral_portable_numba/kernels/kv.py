"""The types of cached keys and values, and the kernel that writes them (see `layouts.py` for their layout)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba

from mistral_portable_numba.compiler.simd.atomics import fetch_add
from mistral_portable_numba.compiler.simd.convert import nearest_i64
from mistral_portable_numba.compiler.simd.get_put import get_f16, get_f32, get_i32, get_i64, put_f16, put_f32, put_i8
from mistral_portable_numba.compiler.simd.operation import inlined
from mistral_portable_numba.kernels.registry import AnyIsa, Factory
from mistral_portable_numba.layouts import KV_BESIDE

__all__ = ["KERNELS", "KV_FORMATS", "KVFormat", "store_kernel"]


@dataclass(frozen=True)
class KVFormat:
    """A type of the cache. size: bytes of a number. scaled: whether numbers have scales. put: the operation that stores
    a number."""

    size: int
    scaled: bool
    put: Any


@inlined
def _put_code(address: Any, value: Any) -> None:
    put_i8(address, nearest_i64(min(max(value, -127.0), 127.0)))  # 127.06, if the scale was rounded down


KV_FORMATS = {
    "float32": KVFormat(4, False, put_f32),
    "float16": KVFormat(2, False, put_f16),
    "q8_0": KVFormat(1, True, _put_code),
}


def store_kernel(dtype: str, keys: bool) -> Callable[..., Any]:
    """The kernel that writes the rows of x into the cache, as keys or as values.

    Arguments: counter, address of T, key/value heads, head_dim, x, its stride, address of the address of the tokens'
    slots (int32, page * 64 + offset), address of the address of the layer's keys or values.
    """
    kind = KV_FORMATS[dtype]
    size, scaled, put, beside = kind.size, kind.scaled, kind.put, KV_BESIDE[dtype]

    @inlined
    def put_scale(address: Any, x: Any, count: Any) -> Any:
        """Store the scale of `count` numbers; returns the factor that quantizes them."""
        most, nothing = numba.float32(0.0), numba.float32(0.0)
        for j in range(count):
            most = max(most, abs(get_f32(x + 4 * j)))
            nothing += get_f32(x + 4 * j) * numba.float32(0.0)  # NaN if a number is not finite, which `max` would lose
        put_f16(address, most / 127.0 + nothing)
        rounded = get_f16(address)
        return 1.0 / rounded if rounded > 0.0 else numba.float32(0.0)

    @inlined
    def store(x: Any, numbers: Any, scales: Any, head_dim: Any) -> None:
        """Store head_dim numbers. `beside` numbers of a key lie side by side, and the next ones 64 of these further; of
        32 numbers of a value each lies among `beside` values."""
        factor = numba.float32(1.0)
        for j in range(head_dim):
            value = get_f32(x + 4 * j)
            if scaled:
                if j % 32 == 0:
                    factor = put_scale(scales + 4 * j, x + 4 * j, min(32, head_dim - j))
                value *= factor
            at = j // beside * 64 * beside + j % beside if keys else j // 32 * 2048 + j % 32 * beside
            put(numbers + at * size, value)

    def kernel(args: Any, thread: Any, threads: Any) -> None:
        counter, count, heads, head_dim = (
            get_i64(args),
            get_i64(get_i64(args + 8)),
            get_i64(args + 16),
            get_i64(args + 24),
        )
        x, xs, slots, pages = get_i64(args + 32), get_i64(args + 40), get_i64(args + 48), get_i64(get_i64(args + 56))
        groups = (head_dim + 31) // 32
        columns = (head_dim + beside - 1) // beside * beside if keys else groups * 32
        numbers = 64 * columns * size
        head_bytes = numbers + (64 * groups * 2 if scaled else 0)
        while True:
            t = fetch_add(counter, 1)
            if t >= count:
                break
            slot = get_i32(get_i64(slots) + 4 * t)
            page, offset = slot // 64, slot % 64
            place = offset * beside if keys else offset // beside * 32 * beside + offset % beside
            for head in range(heads):
                row, base = x + t * xs + 4 * head * head_dim, pages + (page * heads + head) * head_bytes
                store(row, base + place * size, base + numbers + 2 * offset, head_dim)

    return kernel


KERNELS: dict[str, Factory] = {
    f"store_{kind}_{kv}": AnyIsa(store_kernel, (kv, kind == "keys")) for kind in ("keys", "values") for kv in KV_FORMATS
}
