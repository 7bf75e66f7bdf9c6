"""The scheduler alone: nobody starves, budgets and lanes hold, the order is fair."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.engine.scheduler import Scheduler, Turn

BUDGET = 32


@dataclass
class Job:
    prompt: int
    answer: int
    priority: int = 0
    user: str = ""
    made: int = 0
    ready: bool = True


@dataclass
class World:
    """Requests that come by and by, on a number of lanes: `steps` yields each turn until all have ended.

    known: tokens at the beginning of every prompt that are in the cache when it gets a lane. It is the scheduler's
    `Lanes`, too.
    """

    jobs: list[Job]
    lanes: int
    seconds: tuple[float, float] = (0.0, 0.0)  # of a step that decodes, and more for each token that is read
    known: int = 0
    held: set[int] = field(default_factory=set)
    left: dict[int, int] = field(default_factory=dict)
    aside: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def is_ready(self, key: int) -> bool:
        return self.jobs[key].ready

    def begin(self, key: int) -> int | None:
        if len(self.held) >= self.lanes:
            return None
        self.held.add(key)
        self.begun.append(key)
        known = min(self.known, self.left[key] - 1)
        self.left[key] -= known
        return known

    def put_aside(self, key: int) -> None:
        self.held.remove(key)
        self.aside.append(key)
        self.left[key] = self.jobs[key].prompt + self.jobs[key].made

    def steps(self, arrivals: list[int]) -> Iterator[tuple[Scheduler[int], Turn[int]]]:
        scheduler: Scheduler[int] = Scheduler(BUDGET)
        waiting = list(enumerate(self.jobs))
        for step in range(100_000):
            while waiting and arrivals[waiting[0][0]] <= step:
                key, job = waiting.pop(0)
                scheduler.add(key, job.prompt, priority=job.priority, user=job.user)
                self.left[key] = job.prompt
            if not scheduler.requests and not waiting:
                return
            if not scheduler.requests:
                continue
            scheduler.admit(self)
            turn = scheduler.next()
            yield scheduler, turn
            scheduler.took_place(turn)
            decode, read = self.seconds
            scheduler.observe(turn, decode + read * sum(count for _, count in turn.reading))
            asked = list(turn.decoding)
            for key, count in turn.reading:
                self.left[key] -= count
                assert self.left[key] >= 0
                asked += [key] if not self.left[key] else []
            for key in asked:
                assert not self.left[key], "decodes before it has read its prompt"
                self.jobs[key].made += 1
                if self.jobs[key].made == self.jobs[key].answer:
                    scheduler.remove(key)
                    self.held.remove(key)
        raise AssertionError("somebody starves")


jobs = st.builds(Job, st.integers(1, 100), st.integers(1, 20), st.integers(0, 2), st.sampled_from(["a", "b", "c"]))


@given(st.lists(st.tuples(jobs, st.integers(0, 30)), min_size=1, max_size=12), st.integers(1, 4), st.data())
def test_everyone_is_served_within_lanes_and_budget(
    drawn: list[tuple[Job, int]], lanes: int, data: st.DataObject
) -> None:
    drawn.sort(key=lambda pair: pair[1])
    world = World([Job(job.prompt, job.answer, job.priority, job.user) for job, _ in drawn], lanes)
    for scheduler, turn in world.steps([arrival for _, arrival in drawn]):
        assert len(world.held) <= lanes
        assert set(turn.requests) <= world.held
        assert len(set(turn.requests)) == len(turn.requests) > 0
        assert sum(count for _, count in turn.reading) <= BUDGET
        assert set(scheduler.held) == world.held
        # Whoever waits is not more urgent than anyone with a lane.
        urgency = [world.jobs[key].priority for key in world.held]
        assert all(world.jobs[key].priority <= min(urgency) for key in scheduler.waiting)
    assert [job.made for job in world.jobs] == [job.answer for job in world.jobs]


def test_every_sequence_that_decodes_is_in_every_step() -> None:
    world = World([Job(3, 40), Job(5, 40), Job(500, 3)], lanes=3)
    decoding: set[int] = set()
    for _, turn in world.steps([0, 1, 2]):
        assert decoding <= set(turn.decoding) | {key for key, job in enumerate(world.jobs) if job.made == job.answer}
        decoding |= set(turn.decoding)


def test_of_prompts_the_shorter_comes_first_but_a_long_one_is_not_overtaken_for_ever() -> None:
    world = World([Job(320, 1), *(Job(16, 1) for _ in range(100))], lanes=101)
    steps = 0
    for _ in world.steps([0, *range(100)]):
        steps += 1
        if world.jobs[0].made:
            break
    # 320 tokens of its own, at most 320 of others before it: 20 steps of 32.
    assert steps <= 20 + 1
    assert sum(job.made for job in world.jobs[1:]) >= 5


@given(st.integers(1, 5), st.integers(1, 5))
def test_users_share_alike_however_much_they_ask(many: int, few: int) -> None:
    """One user asks for much more than the other: until one has all, both have been dealt the same."""
    world = World([*(Job(64, 1, user="a") for _ in range(4 * many)), *(Job(64, 1, user="b") for _ in range(few))], 100)
    dealt = {"a": 0, "b": 0}
    for _, turn in world.steps([0] * 100):
        for key, count in turn.reading:
            dealt[world.jobs[key].user] += count
        if all(job.made for job in world.jobs if job.user == "b") or all(
            job.made for job in world.jobs if job.user == "a"
        ):
            break
        assert abs(dealt["a"] - dealt["b"]) <= 64 + BUDGET


def test_the_urgent_take_the_lane_of_the_less_urgent_which_go_on_later() -> None:
    world = World([Job(10, 50), Job(10, 5, priority=1)], lanes=1)
    order = [turn for _, turn in world.steps([0, 5])]
    assert len(order) == 50 + 5
    assert (world.aside, world.begun) == ([0], [0, 1, 0])


def test_whoever_does_not_take_its_tokens_gives_way_and_returns() -> None:
    world, scheduler = World([Job(3, 9), Job(3, 9)], lanes=1), Scheduler[int](BUDGET)
    world.left = {0: 3, 1: 3}
    scheduler.add(0, 3)
    scheduler.admit(world)
    scheduler.took_place(scheduler.next())
    scheduler.add(1, 3)
    scheduler.admit(world)
    assert scheduler.next().decoding == (0,)  # the other waits
    scheduler.stall(0, True)
    scheduler.admit(world)
    turn = scheduler.next()
    assert (world.aside, turn.decoding, turn.reading) == ([0], (), ((1, 3),))
    scheduler.took_place(turn)
    scheduler.remove(1)
    world.held.remove(1)
    scheduler.admit(world)
    assert scheduler.next() == Turn()
    scheduler.stall(0, False)
    scheduler.admit(world)
    assert scheduler.next().reading == ((0, 4),)  # its prompt and its newest token


def test_what_is_known_of_a_prompt_is_not_read() -> None:
    world = World([Job(100, 1), Job(80, 1)], lanes=2, known=90)
    read = [turn.reading for _, turn in world.steps([0, 0])]
    assert read == [((1, 1), (0, 10))]


def test_whoever_would_rather_wait_is_passed_over() -> None:
    world = World([Job(10, 3, ready=False), Job(20, 1)], lanes=2)
    for _, turn in world.steps([0, 0]):
        if world.jobs[1].made:
            world.jobs[0].ready = True
        else:
            assert turn.requests in [(1,), ()]
            world.jobs[0].ready = turn.requests == (1,)
    assert world.begun == [1, 0]


@pytest.mark.parametrize(("callers", "beside"), [("aa", BUDGET), ("ab", 7)])
def test_a_caller_reads_its_own_prompts_at_once_and_others_little_by_little(callers: str, beside: int) -> None:
    world, scheduler = World([Job(3, 9), Job(100, 9)], lanes=2), Scheduler[int](BUDGET)
    world.left = {0: 3, 1: 100}
    scheduler.add(0, 3, caller=callers[0])
    scheduler.admit(world)
    scheduler.took_place(scheduler.next())
    scheduler.add(1, 100, caller=callers[1])
    scheduler.admit(world)
    turn = scheduler.next()
    assert (turn.decoding, turn.reading) == ((0,), ((1, beside),))


def test_where_memory_is_short_the_least_urgent_and_latest_gives_way() -> None:
    priorities = [1, 0, 0, 2]
    world, scheduler = World([Job(3, 9)] * 4, lanes=4), Scheduler[int](BUDGET)
    world.left = dict.fromkeys(range(4), 3)
    for key, priority in enumerate(priorities):
        scheduler.add(key, 3, priority=priority)
        scheduler.admit(world)
        scheduler.took_place(scheduler.next())
    assert [scheduler.shed() for _ in range(3)] == [2, 1, 0]


class Room:
    """Lanes for everybody, in which nothing is known."""

    def is_ready(self, key: str) -> bool:
        return True

    def begin(self, key: str) -> int:
        return 0

    def put_aside(self, key: str) -> None:
        raise AssertionError(f"there is room for {key}")


def test_an_answer_reads_its_own_tokens_before_prompts_and_in_chunks() -> None:
    """Three tokens of an answer are known at once; then 100, more than a step has room for beside another's token."""
    scheduler = Scheduler[str](BUDGET)
    scheduler.add("answer", 4)
    scheduler.add("other", 4)
    scheduler.admit(Room())
    scheduler.took_place(scheduler.next())
    assert scheduler.next() == Turn(("answer", "other"))
    scheduler.took_place(scheduler.next())
    scheduler.add("prompt", 1, priority=9)
    scheduler.admit(Room())
    scheduler.read_more("answer", 3)
    turn = scheduler.next()
    assert turn == Turn(("other",), (("answer", 3), ("prompt", 1)))
    scheduler.took_place(turn)
    scheduler.read_more("answer", 100)
    read = 0
    while scheduler.next().reading:
        turn = scheduler.next()
        assert set(turn.decoding) == {"other", "prompt"}
        read += dict(turn.reading)["answer"]
        scheduler.took_place(turn)
    assert read == 100
    assert set(scheduler.next().decoding) == {"other", "prompt", "answer"}


def test_the_budget_beside_a_text_that_decodes_and_where_memory_is_short_is_the_short_one() -> None:
    """Times do not matter here: a step that reads takes as long as one that does not."""

    def read() -> int:
        scheduler.admit(Room())
        turn = scheduler.next()
        scheduler.took_place(turn)
        scheduler.observe(turn, 1.0)
        return sum(count for _, count in turn.reading)

    scheduler = Scheduler[str](4 * BUDGET, BUDGET)
    scheduler.add("long", 30 * BUDGET)
    assert [read(), read()] == [4 * BUDGET] * 2
    assert scheduler.shorten()
    assert not scheduler.shorten()
    assert [read(), read()] == [BUDGET] * 2
    scheduler.lengthen()
    assert read() == 4 * BUDGET
    scheduler.add("short", 1, priority=1)
    assert read() == 4 * BUDGET
    assert max(read() for _ in range(9)) == BUDGET
    assert not Scheduler[str](BUDGET, 4 * BUDGET).shorten()


def test_those_that_want_short_chunks_have_short_steps_together_too() -> None:
    scheduler = Scheduler[str](4 * BUDGET, BUDGET)
    for key in ("a", "b", "c"):
        scheduler.add(key, 2 * BUDGET, chunk=BUDGET)
    scheduler.add("long", 30 * BUDGET)
    scheduler.admit(Room())
    dealt = dict(scheduler.next().reading)
    assert sum(count for key, count in dealt.items() if key != "long") == BUDGET
    assert dealt["long"] == 3 * BUDGET
