"""The conformance ladder on the torch executor: all attention kernels, on pages of 3 slots, so that texts have many.

`flash_kernels.py` stands for the kernels of GPUs, which get the same inputs.
"""

from dataclasses import replace

import pytest
from flash_kernels import flash_attn_varlen_func, flash_attn_with_kvcache, flash_forward, paged_attend
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen
from torch_sessions import PagedBackend, Repeated

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.testing.suite import Target, test_conformance, test_greedy, test_stages

__all__ = ["test_conformance", "test_greedy", "test_stages"]

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

FLASH = PagedBackend(kernel=FlashAttn(flash_attn_varlen_func, flash_attn_with_kvcache))
VARLEN = PagedBackend(kernel=Varlen(flash_forward), record=Repeated())
TRITON = PagedBackend(kernel=Paged(paged_attend, SDPA()), record=Repeated())
TARGETS = {
    "sdpa, float32": Target(PagedBackend(record=Repeated()), ExecutorOptions(dtype="float32", attention="sdpa")),
    "sdpa, bfloat16": Target(PagedBackend(), ExecutorOptions(dtype="bfloat16", attention="sdpa")),
    "eager, float32": Target(PagedBackend(), ExecutorOptions(dtype="float32", attention="eager")),
    "eager, bfloat16": Target(PagedBackend(), ExecutorOptions(dtype="bfloat16", attention="eager")),
    "flex, float32": Target(PagedBackend(), ExecutorOptions(dtype="float32", attention="flex")),
    "flex, bfloat16": Target(PagedBackend(), ExecutorOptions(dtype="bfloat16", attention="flex")),
    "flash_attn": Target(FLASH, ExecutorOptions(dtype="bfloat16")),
    "varlen": Target(VARLEN, ExecutorOptions(dtype="float16")),
    "triton": Target(TRITON, ExecutorOptions(dtype="bfloat16")),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    # One in some 5,000 fresh float32 cases may fail: MKL sums the products of a few dozen columns in sequence, which is
    # correct, but has larger errors than the orders of summation that set the limit.
    # On CPUs flex_attention is interpreted, 30 ms a call; who chooses the token does not depend on it.
    slow = "flex" in request.param and request.function is test_greedy
    return replace(TARGETS[request.param], share=48 if slow else 16)
