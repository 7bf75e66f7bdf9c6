"""The conformance ladder on a user's checkpoint: its own weights, seeded tokens, no hypothesis."""

from collections.abc import Callable, Iterator

import numpy as np

from mistral_portable.boundary import Backend, ExecutorOptions
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.config import MistralConfig, QueryScale, Yarn
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import select_rows
from mistral_portable.testing.case import Case, CheckResult, Drive, Oracles, check
from mistral_portable.testing.contract import run_guarded, run_in_threads, run_then_close
from mistral_portable.testing.op_cases import OP_CASES, op_case
from mistral_portable.testing.scenario import Feed, Scenario, run
from mistral_portable.weights import Checkpoint

__all__ = ["verify_checkpoint"]

_LENGTH = 40
_WINDOW = 8  # so narrow that 40 tokens pass it several times, and pages leave it; the weights do not depend on it
_OP_CONFIG = MistralConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    sliding_window=5,
    rope_scaling=Yarn(4, 8),
    query_scale=QueryScale(0.1, 8),
)


def verify_checkpoint(
    checkpoint: Checkpoint,
    backend: Backend,
    options: ExecutorOptions | None = None,
    *,
    progress: Callable[[str], None] = lambda name: None,
) -> list[CheckResult]:
    """Check every op on random inputs, then the checkpoint's logits against the float64 reference.

    The model is run at its own window and at window 8: in one step, in chunks, token by token, as a ragged batch
    and with rollbacks; at window 8 also in two threads, with its arrays written over after each step, and until it is
    closed. `progress` is called with the name of each check before it runs.
    Raises CheckpointError if the checkpoint is no causal LM of its config.
    """
    check_tensors(build(checkpoint.config), checkpoint.tensors, str(checkpoint.path))
    options = options or ExecutorOptions()
    results = []
    oracles = Oracles()
    cases = list(_cases(checkpoint))  # all graphs stay alive: their identities are keys of `oracles`
    for case, drive in cases:
        progress(case.name)
        results.append(check(case, backend, options, oracles, drive))
    return results


def _cases(checkpoint: Checkpoint) -> Iterator[tuple[Case, Drive]]:
    random = np.random.default_rng(0)

    def text(vocab_size: int, length: int = _LENGTH) -> tuple[int, ...]:
        return tuple(random.integers(0, vocab_size, length).tolist())

    for name in OP_CASES:
        tokens = text(_OP_CONFIG.vocab_size)
        yield op_case(name, _OP_CONFIG, _scenarios(tokens, tokens[:11])["ragged batch"], seed=0), run
    config = checkpoint.config
    own, narrow = config.layer_windows, (_WINDOW,) * config.num_hidden_layers
    for label, windows in {"own window": own, f"window {_WINDOW}": narrow}.items():
        variant = config.with_window(windows)
        graph = verify(select_rows(build(variant), "logits"))
        scenarios = _scenarios(text(config.vocab_size), text(config.vocab_size, 11))
        for name, scenario in scenarios.items():
            yield Case(f"logits, {label}, {name}", variant, graph, checkpoint.tensors, scenario), run
    # The variant is the narrow one here.
    for name, drive in {"threads": run_in_threads, "own outputs": run_guarded, "closed": run_then_close}.items():
        case = Case(f"logits, {label}, {name}", variant, graph, checkpoint.tensors, scenarios["ragged batch"])
        yield case, drive


def _scenarios(text: tuple[int, ...], other: tuple[int, ...]) -> dict[str, Scenario]:
    length = len(text)
    chunks = [range(start, min(start + 7, length)) for start in range(0, length, 7)]

    def feed(part: range, surplus: tuple[int, ...] = ()) -> Feed:
        return Feed(0, (*text[part.start : part.stop], *surplus), len(part))

    chunked = [feed(part) for part in chunks]
    return {
        "one step": Scenario(((feed(range(length)),),)),
        "chunks of 7": Scenario(tuple((step,) for step in chunked)),
        "token by token": Scenario(tuple((feed(range(i, i + 1)),) for i in range(length))),
        "ragged batch": Scenario(
            ((chunked[0],), (chunked[1], Feed(1, other, len(other))), *((step,) for step in chunked[2:]))
        ),
        "rollbacks": Scenario(tuple((feed(part, other[:3]),) for part in chunks)),
    }
