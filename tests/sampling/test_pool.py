import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mistral_portable.sampling.pool import Pool, usable_cpus


@pytest.mark.parametrize("threads", [1, 2, 3, 50])
@pytest.mark.parametrize("count", [0, 1, 2, 100])
def test_each_number_is_taken_once(threads: int, count: int) -> None:
    taken: list[int] = []
    Pool(3).run(taken.append, count, threads=threads)
    assert sorted(taken) == list(range(count))


@pytest.mark.parametrize("most", [1, 3])
def test_so_many_threads_run_at_once_and_no_more(most: int) -> None:
    """A barrier of the callers' thread and the pool's lets all through; beyond these, numbers wait."""
    together, names = threading.Barrier(most + 1), set[str]()

    def meet(number: int) -> None:
        together.wait(timeout=60)
        names.add(threading.current_thread().name)

    Pool(most).run(meet, 2 * (most + 1), threads=50)
    assert len(names) == most + 1
    assert threading.current_thread().name in names


def test_one_thread_is_the_callers() -> None:
    threads: list[threading.Thread] = []
    Pool(3).run(lambda number: threads.append(threading.current_thread()), 5, threads=1)
    assert threads == [threading.current_thread()] * 5


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_is_raised_when_all_threads_have_ended(bad: int) -> None:
    """Both threads meet; one fails, whichever of them, and the other's call is awaited."""
    together, ended = threading.Barrier(2), list[int]()

    def task(number: int) -> None:
        together.wait(timeout=60)
        if number == bad:
            raise ValueError(f"number {number}")
        ended.append(number)

    with pytest.raises(ValueError, match=f"number {bad}"):
        Pool(1).run(task, 2, threads=2)
    assert ended == [1 - bad]


def test_callers_share_a_pool() -> None:
    """Each call gets its own numbers, also while the pool's threads work for others."""
    pool = Pool(2)

    def call(caller: int) -> list[int]:
        taken: list[int] = []
        pool.run(taken.append, 100, threads=3)
        return sorted(taken)

    with ThreadPoolExecutor(8) as callers:
        assert list(callers.map(call, range(8))) == [list(range(100))] * 8


def test_cpus_are_counted() -> None:
    assert usable_cpus() >= 1
