"""Batches on Ray Data: files are read where Ray likes, pieces of requests go to replicas, answers come back here."""

import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa

from mistral_portable.clusters import connect
from mistral_portable.engine import load
from mistral_portable.errors import BackendError, InputError, MistralPortableError
from mistral_portable.openai.answer_file import AnswerFile
from mistral_portable.openai.batch import BatchResult
from mistral_portable.openai.batch_lines import answer_lines, beginning, check_request
from mistral_portable.scaling.answers import AnswerFolder, answers_at
from mistral_portable.scaling.pieces import cut, piece_size
from mistral_portable.scaling.places import Place, request_files, requests_in

__all__ = ["run_ray_batch"]

# Ray Data and what is below it write what they do, and tracebacks of workers, to stderr: our errors say what is wrong.
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DATA_LOG_LEVEL": "CRITICAL"}
_AT_A_TIME = 2  # pieces in a replica: while the last answers of one are made, the next one fills the lanes
_ROWS = 1000  # requests that are handed on together


def run_ray_batch(
    source: str,
    target: str,
    options: Mapping[str, Any],
    *,
    address: str,
    replicas: int,
    threads: int = 1,
    progress: Callable[[str, int, int], None],
) -> BatchResult:
    """Answer the requests of `source` whose answers are not at `target` yet, in replicas on a Ray cluster.

    source: a .jsonl or .parquet file or a folder of them; target: a .jsonl file on this machine, or a folder; both as
    path or URL. The replicas must be able to read `source`, this process both. options: arguments of
    `mistral_portable.load`, in each replica; paths in them must exist on its machine. address: as `connect` takes it.
    threads: CPU threads of a replica. progress: called as (what, done, total).

    A replica that dies is started again, and what it was asked is asked again; an answer that has been written already
    is not written twice.

    Raises InputError if places or requests are bad, the errors of `connect`, and those of `load` in a replica.
    """
    place = Place.of(source)
    if f"{Place.of(target).path}/".startswith(f"{place.path}/"):  # else the next start would read them as requests
        raise InputError(f"{target}: the answers need a place of their own, outside of {source}")
    paths = request_files(place)
    for name, level in _QUIET.items():  # before Ray is imported
        os.environ.setdefault(name, level)
    with connect(address, cpus=replicas * threads), _ray_errors():
        progress("reading requests", 0, 1)
        requests, ids = _read(place, paths)
        with closing(answers_at(target, ids)) as answers:
            before, left = len(answers.done), len(ids) - len(answers.done)
            counts = Counter[bool]()
            if left:
                size = piece_size(left, replicas, options["max_lanes"])
                progress("sorting requests", 0, 1)
                pieces = _pieces(requests, answers.done, size)
                progress("requests", before, len(ids))
                for answered in _answered(pieces, answers, {**options, "threads": threads}, replicas):
                    counts[answered] += 1
                    progress("requests", before + counts.total(), len(ids))
            if counts.total() != left:
                raise MistralPortableError(f"{left - counts.total()} of {left} requests have no answer: start it again")
    return BatchResult(counts[True], counts[False], before)


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Turn errors of Ray, such as a worker without memory, into a line of ours."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"Ray: {lines[-1]}") from error


def _read(place: Place, paths: list[str]) -> tuple[Any, Set[str]]:
    """All requests as rows of Ray Data, and their custom_ids."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    files = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=len(paths))
    rows = files.map_batches(_Reader(place), batch_size=1, batch_format="pyarrow").materialize()
    seen: dict[str, str] = {}
    columns = rows.select_columns(["custom_id", "where", "fault"])
    for batch in columns.iter_batches(batch_size=None, batch_format="pyarrow"):
        for custom_id, where, fault in zip(*map(pa.ChunkedArray.to_pylist, batch.columns), strict=True):
            if fault:
                raise InputError(fault)
            if custom_id in seen:
                raise InputError(f"{where}: custom_id {custom_id!r} is that of {seen[custom_id]}, too")
            seen[custom_id] = where
    return rows, seen.keys()


class _Reader:
    """Reads files of requests, in a task of Ray. The first fault of a file is its last row."""

    def __init__(self, place: Place) -> None:
        self._system = place.system

    def __call__(self, files: pa.Table) -> Iterator[pa.Table]:
        rows: list[dict[str, str]] = []
        for path in files["path"].to_pylist():
            for row in self._rows(path):
                rows.append(row)
                if len(rows) == _ROWS:
                    yield pa.Table.from_pylist(rows, schema=_REQUESTS)
                    rows.clear()
        yield pa.Table.from_pylist(rows, schema=_REQUESTS)

    def _rows(self, path: str) -> Iterator[dict[str, str]]:
        try:
            for where, line in requests_in(self._system, path):
                check_request(line, where)
                text = json.dumps(line)
                yield {"custom_id": line["custom_id"], "where": where, "beginning": beginning(line), "request": text}
        except InputError as error:
            yield {"fault": str(error)}


_REQUESTS = pa.schema([(name, pa.large_string()) for name in ("custom_id", "where", "beginning", "request", "fault")])


def _pieces(requests: Any, done: Set[str], size: int) -> Any:
    """Rows of Ray Data, each a piece of requests whose prompts begin alike, each in a block of its own."""
    excluded = pa.array(sorted(done), pa.large_string())

    def waiting(rows: pa.Table) -> pa.Table:
        import pyarrow.compute as pc

        return rows.filter(pc.invert(pc.is_in(rows["custom_id"], value_set=excluded)))

    def pieces(rows: pa.Table) -> pa.Table:
        texts = rows["request"].to_pylist()
        spans = cut(rows["beginning"].to_pylist(), size)
        return pa.table({"requests": pa.array([texts[begin:end] for begin, end in spans], pa.list_(pa.large_string()))})

    sorted_rows = requests.map_batches(waiting, batch_size=None, batch_format="pyarrow").sort("beginning")
    return (
        sorted_rows.map_batches(pieces, batch_size=None, batch_format="pyarrow")
        .repartition(target_num_rows_per_block=1)
        .materialize()
    )


def _answered(
    pieces: Any, answers: AnswerFile | AnswerFolder, options: Mapping[str, Any], replicas: int
) -> Iterator[bool]:
    """Let replicas answer, and write what they say; yield of each answer whether its request has one (status 200)."""
    import ray

    made = pieces.map_batches(
        _Replica,
        fn_constructor_args=[options],
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=options["threads"],
        compute=ray.data.ActorPoolStrategy(
            size=replicas,
            max_tasks_in_flight_per_actor=2 * _AT_A_TIME,
            max_concurrent_calls_per_actor=_AT_A_TIME,
            enable_true_multi_threading=True,
        ),
    )
    written: set[str] = set()
    for batch in made.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for custom_id, answered, line, fault in zip(*map(pa.ChunkedArray.to_pylist, batch.columns), strict=True):
            if fault:
                raise BackendError(fault)
            if custom_id not in written and custom_id not in answers.done:
                written.add(custom_id)
                answers.add(line)
                yield answered


class _Replica:
    """A model in an actor of Ray. That it cannot be loaded is told by a row, as Ray would start the actor for ever."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        try:
            self._model = load(**options)
            self._fault = ""
        except MistralPortableError as error:
            self._fault = f"a replica on {socket.gethostname()}: {error}"

    def __call__(self, pieces: pa.Table) -> pa.Table:
        if self._fault:
            return _answers([(None, False, b"", self._fault)])
        requests = [json.loads(text) for piece in pieces["requests"].to_pylist() for text in piece]
        lines = answer_lines(self._model, requests)
        return _answers((json.loads(line)["custom_id"], answered, line, None) for answered, line in lines)


def _answers(rows: Iterable[tuple[str | None, bool, bytes, str | None]]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(_ANSWERS.names, row, strict=True)) for row in rows], schema=_ANSWERS)


_ANSWERS = pa.schema(
    [("custom_id", pa.string()), ("answered", pa.bool_()), ("line", pa.large_binary()), ("fault", pa.string())]
)
