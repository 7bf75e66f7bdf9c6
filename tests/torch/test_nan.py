"""NaN stays in the sequences that see it: pages that change hands do not carry it on."""

import numpy as np
import pytest
from flash_kernels import flash_attn_varlen_func, flash_attn_with_kvcache, flash_forward, paged_attend
from mistral_portable_torch.attention import Eager
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.flex import Flex
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.varlen import Varlen
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

from mistral_portable.boundary import load_lane, save_lane
from mistral_portable.cache import Chunk
from mistral_portable.graph import build
from mistral_portable.testing import random_weights
from mistral_portable.weights import DenseTensor

POISON = 7
"""A token that has NaN logits, keys and values; so have all tokens that see it."""

KERNELS = {
    "sdpa": PagedBackend(page=8),
    "sdpa, recorded": PagedBackend(page=8, record=Repeated()),
    "eager": PagedBackend(page=8, kernel=Eager()),
    "flex": PagedBackend(page=8, kernel=Flex(compiled=False)),
    "flash_attn": PagedBackend(page=8, kernel=FlashAttn(flash_attn_varlen_func, flash_attn_with_kvcache)),
    "varlen": PagedBackend(page=8, kernel=Varlen(flash_forward), record=Repeated()),
    "triton": PagedBackend(page=8, kernel=Paged(paged_attend, Varlen(flash_forward)), record=Repeated()),
}
PURE = [token for token in text(200) if token != POISON]


@pytest.fixture(params=KERNELS)
def poisoned(request: pytest.FixtureRequest) -> Session:
    """A session whose lane 0 has 60 tokens; token 20 is POISON."""
    session = poisonable(KERNELS[request.param])
    lane, logits = session.begin(PURE[:20])
    assert np.isfinite(logits).all()
    assert np.isnan(session.feed(lane, [POISON, *PURE[20:59]])).all()
    return session


def poisonable(backend: PagedBackend) -> Session:
    config = CONFIG.with_window(None)
    weights = dict(random_weights(build(config), 0))
    table = weights["model.embed_tokens.weight"].numpy()
    table[POISON] = np.nan
    weights["model.embed_tokens.weight"] = DenseTensor("model.embed_tokens.weight", "float32", table)
    return Session(config, backend, weights=weights)


def continues_cleanly(session: Session, lane: int, cached: int) -> None:
    """Check that a lane with the first tokens of PURE continues as in a clean session, in single tokens and chunks."""
    clean = poisonable(PagedBackend(page=8, kernel=Eager()))
    other = clean.begin(PURE[:cached])[0] if cached else clean.manager.open()
    for count in (1, 1, 5, 1, 1, 1, 30, 1, 1, 1):
        tokens = PURE[cached : cached + count]
        np.testing.assert_allclose(session.feed(lane, tokens), clean.feed(other, tokens), rtol=1e-4, atol=1e-4)
        cached += count


def test_nan_does_not_reach_the_next_owner_of_a_page(poisoned: Session) -> None:
    poisoned.manager.close(0)
    lane = poisoned.manager.open()
    continues_cleanly(poisoned, lane, 0)


def test_nan_is_gone_after_a_rollback(poisoned: Session) -> None:
    poisoned.manager.rollback(0, 20)
    continues_cleanly(poisoned, 0, 20)


def test_nan_after_the_fork_point_does_not_reach_the_fork(poisoned: Session) -> None:
    continues_cleanly(poisoned, poisoned.manager.fork(0, 20), 20)
    assert np.isnan(poisoned.feed(0, [1])).all()


def test_nan_that_was_rolled_back_is_not_saved(poisoned: Session) -> None:
    poisoned.manager.rollback(0, 20)
    saved = save_lane(poisoned.program, poisoned.manager, 0)
    continues_cleanly(poisoned, load_lane(poisoned.program, poisoned.manager, saved), 20)


def test_nan_does_not_reach_another_sequence_of_the_batch(poisoned: Session) -> None:
    """The other sequence has fewer pages, so its row of the page table is padded."""
    lane, _ = poisoned.begin(PURE[:3])
    for token in PURE[3:40]:
        plan = poisoned.manager.plan([Chunk(0, [token], [0]), Chunk(lane, [token], [0])])
        sick, healthy = poisoned.program.step(plan)["logits"]
        assert np.isnan(sick).all()
        assert np.isfinite(healthy).all()
    continues_cleanly(poisoned, lane, 40)
