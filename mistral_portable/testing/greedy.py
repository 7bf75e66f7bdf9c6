"""Whether the tokens that a GreedyProgram takes on its device are those of the highest logits."""

from mistral_portable.boundary import Backend, ExecutorOptions, GreedyProgram, Program, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.testing.case import Case
from mistral_portable.testing.scenario import given_inputs

__all__ = ["greedy_tokens"]


def greedy_tokens(case: Case, backend: Backend, options: ExecutorOptions, count: int) -> tuple[list[int], list[int]]:
    """Continue the case's texts together, by `count` tokens each: as the device chooses, and as `step`'s logits say.

    On the device each step begins before a token of the last one is read. Rows in place of embeddings are the case's in
    the texts, and none in the answers.
    """
    prompts = list(case.scenario.texts.values())
    longest = max(map(len, prompts))
    spec = CacheSpec.from_config(
        case.config,
        max_context=longest + count,
        page_size=backend.capabilities.page_size,
        max_chunk=longest,
        max_lanes=2 * len(prompts),
    )
    program = prepare(backend, case.graph, case.weights, spec, options)
    try:
        assert isinstance(program, GreedyProgram), f"{backend.name}'s program has no begin_greedy"
        manager = CacheManager(spec)
        return _by_device(program, case, manager, prompts, count), _by_host(program, case, manager, prompts, count)
    finally:
        program.close()


def _by_device(
    program: GreedyProgram, case: Case, manager: CacheManager, prompts: list[tuple[int, ...]], count: int
) -> list[int]:
    lanes = [manager.open() for _ in prompts]
    plan = manager.plan(_last_rows(lanes, prompts))
    steps = [program.begin_greedy(plan, given_inputs(plan, case.graph, case.scenario.embeds))]
    for _ in range(count - 1):
        plan = manager.plan([Chunk(lane, [0], rows=[0]) for lane in lanes])
        steps.append(program.begin_greedy(plan, given_inputs(plan, case.graph, embeds=False), after=steps[-1]))
    return [int(token) for step in steps for token in step.tokens()]


def _by_host(
    program: Program, case: Case, manager: CacheManager, prompts: list[tuple[int, ...]], count: int
) -> list[int]:
    lanes, chosen, tokens = [manager.open() for _ in prompts], prompts, list[int]()
    for number in range(count):
        plan = manager.plan(_last_rows(lanes, chosen))
        inputs = given_inputs(plan, case.graph, case.scenario.embeds and number == 0)
        logits = program.step(plan, inputs)["logits"]
        best = logits.argmax(axis=-1).tolist()
        chosen = [(token,) for token in best]
        tokens += best
    return tokens


def _last_rows(lanes: list[int], chunks: list[tuple[int, ...]]) -> list[Chunk]:
    return [Chunk(lane, chunk, rows=[len(chunk) - 1]) for lane, chunk in zip(lanes, chunks, strict=True)]
