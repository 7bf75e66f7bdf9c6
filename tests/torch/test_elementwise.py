"""On a CPU operations on numbers one by one take some rows at a time, which changes nothing."""

import pytest
import torch
from mistral_portable_torch.elementwise import elementwise


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_give_what_the_whole_gives(tokens: int, dtype: torch.dtype) -> None:
    """Also where there are as many columns as tokens, and of halves of a joined result."""
    made = torch.Generator().manual_seed(tokens)
    both, weight = torch.randn(tokens, 2 * tokens, generator=made).to(dtype), torch.randn(tokens, generator=made)
    gate, up = both[:, :tokens], both[:, tokens:]
    heads = torch.randn(tokens, 3 * 8, generator=made).to(dtype)
    cos, sin = torch.randn(2, tokens, 1, 2, 4, generator=made)
    pieces, whole = elementwise("cpu"), elementwise("mps")
    assert torch.equal(pieces.silu_mul(gate, up), whole.silu_mul(gate, up))
    assert torch.equal(pieces.turn(heads, cos, sin), whole.turn(heads, cos, sin))
    torch.testing.assert_close(pieces.rms_norm(gate, weight, 1e-5), whole.rms_norm(gate, weight, 1e-5))
