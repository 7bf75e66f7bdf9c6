"""Our Triton kernel for decoding against softmax attention: `python tests/paged_attention.py`, in a process of its own.

Compiled on a GPU; elsewhere interpreted slowly, with TRITON_INTERPRET=1, which Triton reads at its import.
"""

import itertools
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.attention.kernel import Planned, Sizes
from mistral_portable_torch.attention.paged import Paged, splits_of
from mistral_portable_torch.attention.paged_kernels import attend
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.reads import GroupReads
from torch_memory import Held

from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float16, torch.bfloat16] + ([torch.float32] if DEVICE.type == "cpu" else [])
PAGES = st.sampled_from([1, 3, 8, 16, 64])


def expected(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float) -> torch.Tensor:
    """q [h, d], keys and values [N, g, d] -> [h, d], float64."""
    group = q.shape[0] // keys.shape[1]
    wide = keys.double().repeat_interleave(group, 1), values.double().repeat_interleave(group, 1)
    weights = torch.einsum("hd,khd->hk", q.double() * scale, wide[0]).softmax(-1)
    return torch.einsum("hk,khd->hd", weights, wide[1])


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    """Weights are rounded to the dtype, so values of up to 4 may be off by 4 epsilon each, and the result is rounded
    once more; Triton's interpreter rounds bfloat16 towards zero."""
    eps = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(found.double(), wanted, rtol=2 * eps, atol=8 * eps)


@settings(max_examples=40, deadline=None)  # Triton's interpreter runs each in Python
@given(
    groups=st.integers(1, 3),
    shared=st.sampled_from([1, 2, 4, 7, 17]),
    size=st.sampled_from([2, 24, 64, 80, 128, 256]),
    page=PAGES,
    lengths=st.lists(st.tuples(st.integers(0, 63), st.integers(1, 130)), min_size=1, max_size=3),
    splits=st.sampled_from([1, 2, 4, 32]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def check_drawn_tables(
    groups: int, shared: int, size: int, page: int, lengths: list[tuple[int, int]], splits: int, dtype: torch.dtype,
    seed: int,
) -> None:  # fmt: skip
    """Pages lie anywhere in the pool, and all that a sequence does not see is NaN."""
    made = torch.Generator().manual_seed(seed)
    hidden = [first % page for first, _ in lengths]
    ends = [first + count for first, (_, count) in zip(hidden, lengths, strict=True)]
    columns = max(-(-end // page) for end in ends) + 1
    order = torch.randperm(len(lengths) * columns + 2, generator=made)
    table = order[: len(lengths) * columns].view(len(lengths), columns).int()
    pools = torch.full((2, len(order), page, groups, size), torch.nan)
    q = torch.randn(len(lengths), groups * shared, size, generator=made).to(dtype)
    wanted = []
    for s, (begin, end) in enumerate(zip(hidden, ends, strict=True)):
        own = torch.randn(2, end - begin, groups, size, generator=made).to(dtype)
        slots = torch.arange(begin, end)
        pools[:, table[s, slots // page].long(), slots % page] = own.float()
        wanted.append(expected(q[s], own[0], own[1], size**-0.5))
    keys, values = pools.to(DEVICE, dtype)
    last, first = (torch.tensor(counts, dtype=torch.int32, device=DEVICE) for counts in (ends, hidden))
    found = attend(q.to(DEVICE), keys, values, table.to(DEVICE), last, first, size**-0.5, splits)
    assert found.dtype == dtype
    close(found.cpu(), torch.stack(wanted), dtype)


@settings(max_examples=25, deadline=None)  # Triton's interpreter runs each in Python
@given(
    window=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, None]),
    page=PAGES,
    texts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    recorded=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def check_plans(window: int | None, page: int, texts: list[int], recorded: bool, dtype: torch.dtype, seed: int) -> None:
    """Plans of the cache manager for texts across W and 2 W: the kernel gives what torch's SDPA does, in float64."""
    config = MistralConfig(
        vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=window,
    )  # fmt: skip
    spec = CacheSpec.from_config(config, max_context=40, page_size=page, max_chunk=20, max_lanes=4)
    manager = CacheManager(spec)
    lanes = [manager.open() for _ in texts]
    if read := [Chunk(lane, [0] * count) for lane, count in zip(lanes, texts, strict=True) if count]:
        manager.plan(read)
    plan = manager.plan([Chunk(lane, [0], [0]) for lane in lanes])
    made = torch.Generator().manual_seed(seed)
    q = torch.randn(len(texts), 4, 16, generator=made).to(dtype)
    pools = torch.randn(2, plan.groups[0].page_count, page, 2, 16, generator=made).to(dtype)
    reads = GroupReads(plan, spec, 0)

    def run(kernel: Any, device: torch.device, *tensors: torch.Tensor) -> torch.Tensor:
        planned = kernel.plan(reads, recorded)
        arrays = {name: torch.from_numpy(array).to(device) for name, array in planned.arrays.items()}
        prepared = kernel.prepare(Planned(planned.fixed, arrays))
        found: torch.Tensor = kernel.attend(*(tensor.to(device) for tensor in tensors), prepared, 0.25)
        return found.cpu()

    wanted = run(SDPA(), torch.device("cpu"), q.double(), *pools.double())
    close(run(Paged(attend, SDPA()), DEVICE, q, *pools), wanted, dtype)


def check_nan() -> None:
    """A NaN that a sequence sees reaches all its results, however its keys are split, and those of no other one."""
    keys, values = (torch.ones(2, 256, 2, 16, device=DEVICE).half() for _ in range(2))
    q, table = torch.ones(2, 4, 16, device=DEVICE).half(), torch.tensor([[0], [1]], dtype=torch.int32, device=DEVICE)
    ends = torch.tensor([200, 200], dtype=torch.int32, device=DEVICE)
    for at, splits, pool in itertools.product((3, 199), (1, 2, 4, 32), (keys, values)):
        pool[0, at] = torch.nan
        found = attend(q, keys, values, table, ends, ends - 198, 1.0, splits)
        assert found[0].isnan().all()
        assert (found[1] == 1).all()
        pool[0, at] = 1


def check_scratch() -> None:
    """The bytes that the kernel takes are those that are known before a step; its result is not among them."""
    for sequences, columns in itertools.product((1, 8, 40), (1, 17)):
        q, pool = (torch.zeros(shape, device=DEVICE).half() for shape in ((sequences, 8, 16), (1, 256, 2, 16)))
        table = torch.zeros(sequences, columns, dtype=torch.int32, device=DEVICE)
        ones = torch.ones(sequences, dtype=torch.int32, device=DEVICE)
        sizes = Sizes(sequences, 0, 0, 0, columns, 256)
        with Held() as held:
            attend(q, pool, pool, table, ones, ones - 1, 1.0, splits_of(sequences, 2, columns * 256))
        known = Paged(attend, SDPA()).scratch_bytes(sizes, 8, 2, 16, 2)
        assert held.most == known + q.nbytes + ones.nbytes, (sequences, columns, held.most, known)


if __name__ == "__main__":
    check_nan()
    check_scratch()
    check_drawn_tables()
    check_plans()
