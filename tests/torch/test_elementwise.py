"""RMS norm, RoPE and SwiGLU on some rows at a time, as on a CPU, give what they give on all rows at once."""

import pytest
import torch
from mistral_portable_torch.elementwise import elementwise


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_rows_give_the_same_results(tokens: int, dtype: torch.dtype) -> None:
    """Also with as many columns as tokens, and on the two halves of a fused result."""
    made = torch.Generator().manual_seed(tokens)
    both, weight = torch.randn(tokens, 2 * tokens, generator=made).to(dtype), torch.randn(tokens, generator=made)
    gate, up = both[:, :tokens], both[:, tokens:]
    heads = torch.randn(tokens, 3 * 8, generator=made).to(dtype)
    cos, sin = torch.randn(2, tokens, 1, 2, 4, generator=made)
    pieces, whole = elementwise("cpu"), elementwise("mps")
    assert torch.equal(pieces.silu_mul(gate, up), whole.silu_mul(gate, up))
    assert torch.equal(pieces.rope(heads, cos, sin), whole.rope(heads, cos, sin))
    torch.testing.assert_close(pieces.rms_norm(gate, weight, 1e-5), whole.rms_norm(gate, weight, 1e-5))
