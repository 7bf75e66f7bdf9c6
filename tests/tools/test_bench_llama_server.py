"""The client of llama-server and the server's life, with a stand-in for the program (tests/fake_llama_server.py)."""

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest
from fake_llama_server import BROKEN, Server, install

from tools.bench_llama_server import LlamaServer, complete, llama_server_version
from tools.bench_play import Reply


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(0) as some:
        thread = threading.Thread(target=some.serve_forever)
        thread.start()
        yield some
        some.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    return install(tmp_path_factory.mktemp("bin"))


def ask(server: Server, prompt: list[int], answer: int) -> tuple[Reply, list[int]]:
    counts: list[int] = []
    return asyncio.run(complete(server.server_port, prompt, answer, counts.append)), counts


def test_tokens_count_as_they_come(server: Server) -> None:
    reply, counts = ask(server, [7, 10], 4)
    assert (list(reply.tokens), reply.cached) == ([11, 12, 13, 14], 0)
    assert counts == [1, 2, 3, 4, 4]
    reply, _ = ask(server, [7, 10, 11, 12, 50], 1)
    assert reply.cached == 4


def test_the_request_asks_for_what_this_library_does(server: Server) -> None:
    ask(server, [3], 1)
    (body,) = server.bodies
    assert body == {
        "prompt": [3],
        "n_predict": 1,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "cache_prompt": True,
    }


def test_a_token_that_was_held_back_counts_with_the_next(server: Server) -> None:
    reply, counts = ask(server, [12], 5)  # 13 14 (15) 16 17
    assert counts == [1, 2, 4, 5, 5]
    assert reply.tokens == [13, 14]
    reply, counts = ask(server, [12], 3)
    assert counts == [1, 2, 3]
    assert reply.tokens == [13, 14]


def test_long_answers_arrive_whole(server: Server) -> None:
    reply, counts = ask(server, [1] * 8000, 3)
    assert (list(reply.tokens), counts) == ([2, 3, 4], [1, 2, 3, 3])


def test_a_refusal_tells_why(server: Server) -> None:
    with pytest.raises(RuntimeError, match=r"400.*the prompt is empty"):
        ask(server, [], 1)


def test_an_answer_that_breaks_off_is_an_error(server: Server) -> None:
    with pytest.raises(RuntimeError, match="no memory"):
        ask(server, [BROKEN], 3)


def test_a_server_runs_as_long_as_its_block(program: str) -> None:
    server = LlamaServer(program, "model.gguf", slots=2, room=100, threads=1)
    counts: list[int] = []
    with server:
        reply = asyncio.run(server.ask([1], 2, counts.append))
        assert list(reply.tokens) == [2, 3]
    with pytest.raises(OSError, match="Connect call failed"):
        asyncio.run(server.ask([1], 2, counts.append))


def test_a_server_that_does_not_start_tells_why(program: str) -> None:
    with pytest.raises(RuntimeError, match=r"llama-server did not start: cannot open nothing\.gguf"):  # noqa: SIM117
        with LlamaServer(program, "nothing.gguf", slots=1, room=1, threads=1):
            raise AssertionError


def test_the_version_is_the_servers(program: str) -> None:
    assert llama_server_version(program) == "1 (fake)"
    with pytest.raises(RuntimeError, match="is it a llama-server"):
        llama_server_version(sys.executable)
