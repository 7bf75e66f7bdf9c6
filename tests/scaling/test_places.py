"""Files of requests and folders of answers, without Ray."""

import gzip
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_portable.errors import InputError

pa = pytest.importorskip("pyarrow", reason="comes with the extra ray")
places = import_module("mistral_portable.scaling.places")  # they import pyarrow
answers_of = import_module("mistral_portable.scaling.answers")
Place, AnswerFolder = places.Place, answers_of.AnswerFolder

Values = st.recursive(
    st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def request(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def read(path: Path) -> list[dict[str, Any]]:
    place = Place.of(str(path))
    return [line for file in places.request_files(place) for _, line in places.requests_in(place.system, file)]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), "utf-8", newline="\n")


def write_zipped(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(f"{json.dumps(line)}\n" for line in lines).encode()))


def write_parquet(path: Path, lines: list[dict[str, Any]]) -> None:
    from pyarrow import parquet

    rows = [{**line, "body": json.dumps(line["body"])} for line in lines]
    schema = pa.schema([(name, pa.string()) for name in ("custom_id", "method", "url", "body")])
    parquet.write_table(pa.Table.from_pylist(rows, schema), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "a.jsonl": write_lines,
    "a.jsonl.gz": write_zipped,
    "a.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
@given(bodies=st.lists(st.dictionaries(st.text(max_size=4), Values, max_size=3), max_size=4))
def test_files_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, name: str, bodies: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("requests") / name
    lines = [{**request(str(i)), "body": body} for i, body in enumerate(bodies)]
    WRITERS[name](path, lines)
    assert read(path) == lines


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    """JSON allows line separators of Unicode in a text, which are no ends of lines of the file."""
    line = request("a", prompt="one\u2028two\x85three")
    write_lines(tmp_path / "a.jsonl", [line])
    assert read(tmp_path / "a.jsonl") == [line]


def test_structs_of_parquet_lose_what_is_null(tmp_path: Path) -> None:
    from pyarrow import parquet

    lines = [request("a", prompt="x", seed=1), request("b", prompt=None, stop=["y"])]
    parquet.write_table(pa.Table.from_pylist(lines), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [request("a", prompt="x", seed=1), request("b", stop=["y"])]


def test_a_folder_has_the_files_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for i, (name, write) in enumerate(WRITERS.items()):
        write(tmp_path / "sub" / name, [request(str(i))])
    (tmp_path / "notes.txt").write_text("no requests")
    assert sorted(line["custom_id"] for line in read(tmp_path)) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"{}\n5\n", "a.jsonl line 2: 5 must be an object"),
        ("a.jsonl", b"\xff\n", "a.jsonl line 1: no JSON"),
        ("a.jsonl.gz", gzip.compress(bytes(2**26 + 1)), "a.jsonl.gz line 1: it has more than 64 MiB"),
        ("a.jsonl.gz", b"no gzip\n", "a.jsonl.gz: cannot be read"),
        ("a.parquet", b"no parquet", "a.parquet: cannot be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        read(tmp_path / name)


def test_a_row_of_parquet_has_64_mib_at_most(tmp_path: Path) -> None:
    """Also where the file has a value once, for all rows, and few bytes for it."""
    lines = [request("a", prompt="x"), *(request(name, prompt="x" * 2**26) for name in "bc")]
    write_parquet(tmp_path / "a.parquet", lines)
    assert (tmp_path / "a.parquet").stat().st_size < 2**24
    place = Place.of(str(tmp_path / "a.parquet"))
    found = places.requests_in(place.system, place.path)
    assert next(found)[1] == lines[0]
    with pytest.raises(InputError, match=r"a\.parquet row 2: it has more than 64 MiB"):
        next(found)


def test_places_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "no")
    with pytest.raises(InputError, match="has no files"):
        read(tmp_path)
    with pytest.raises(InputError, match="cannot be opened: Protocol not known"):
        Place.of("nonsense://bucket/file")


def answer(custom_id: str) -> bytes:
    return json.dumps({"id": "batch_req_1", "custom_id": custom_id}).encode() + b"\n"


@pytest.mark.parametrize("name", ["out.jsonl", "out"])
@given(parts=st.lists(st.integers(0, 4), max_size=4))
def test_answers_that_were_there_are_known(
    tmp_path_factory: pytest.TempPathFactory, name: str, parts: list[int]
) -> None:
    """parts: how many answers each of several runs makes."""
    target = str(tmp_path_factory.mktemp("answers") / name)
    ids = {str(i) for i in range(sum(parts))}
    written: set[str] = set()
    for count in parts:
        answers = answers_of.answers_at(target, ids)
        assert isinstance(answers, AnswerFolder) == (name == "out")
        assert answers.done == written
        new = sorted(ids - written)[:count]
        for custom_id in new:
            answers.add(answer(custom_id))
        answers.close()
        written |= set(new)
    assert answers_of.answers_at(target, ids).done == ids


def test_answers_are_written_in_time_though_no_other_comes(tmp_path: Path) -> None:
    answers = AnswerFolder(Place.of(str(tmp_path)), {"a", "b"}, seconds=0.01)
    for custom_id in ("a", "b"):
        before = set(tmp_path.glob("*.jsonl"))
        answers.add(answer(custom_id))
        end = time.monotonic() + 30
        while not (new := set(tmp_path.glob("*.jsonl")) - before) and time.monotonic() < end:
            time.sleep(0.001)
        assert new.pop().read_bytes() == answer(custom_id)
    answers.close()
    assert len(list(tmp_path.iterdir())) == 2


def test_answers_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    """Though the thread that writes in time has tried it before, and has nobody to tell."""
    answers = AnswerFolder(Place.of(str(tmp_path / "out")), {"a"}, seconds=0.01)
    (tmp_path / "out").rmdir()
    answers.add(answer("a"))
    time.sleep(0.1)
    with pytest.raises(OSError, match="out"):
        answers.close()


def test_a_folder_of_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "diary.jsonl").write_text('{"dear": "diary"}\n')
    with pytest.raises(InputError, match=r"diary\.jsonl line 1: answers None, which nobody asked"):
        AnswerFolder(Place.of(str(tmp_path)), {"a"})


def test_what_a_dying_process_left_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / ".answers-1.jsonl.partial").write_bytes(answer("a")[:9])
    assert AnswerFolder(Place.of(str(tmp_path)), {"a"}).done == set()


@pytest.mark.parametrize("target", ["", "out.jsonl", "answers"])
def test_answers_do_not_lie_among_the_requests(tmp_path: Path, target: str) -> None:
    """Else the next start would take them for requests."""
    run = import_module("mistral_portable.scaling.batches").run_ray_batch
    (tmp_path / "in.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"the answers need a place of their own, outside of"):
        run(str(tmp_path), str(tmp_path / target), {}, address="local", replicas=1, progress=lambda *_: None)
