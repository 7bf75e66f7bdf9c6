"""Files of sessions: whatever is in one does no harm, and a write that fails leaves the old one."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_sessions import CHAT, GREEDY, OTHER
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from weights.damage import damage

import mistral_portable as mp
from mistral_portable.engine import session as sessions
from mistral_portable.errors import CacheError, InputError

# --- files that are not to be trusted ---------------------------------------------------------------------------------


def test_other_weights_and_settings_are_refused(file: Path, tmp_path: Path) -> None:
    """A model of the same shapes, whose lanes would fit."""
    cases: list[tuple[dict[str, Any], str]] = [
        ({"window": 7}, "it is of other weights, or of another window; load the model that it was saved with"),
        ({"quantize": "q4_0"}, "it is of other weights"),
        ({"kv_cache": "q8_0"}, "it is of kv_cache='float16', and this is kv_cache='q8_0'"),
        ({"dtype": "float32"}, "it is of quantized_linear='int8', and this is quantized_linear='None'"),
        ({"backend": "reference"}, "it is of backend='numba', and this is backend='reference'"),
    ]
    for options, message in cases:
        with mp.load("tiny", **{"backend": "numba", **options}) as other:
            with pytest.raises(CacheError, match=message) as caught:
                other.load_session(file)
            assert str(file) in str(caught.value)
            assert other.generate(CHAT, **GREEDY).timings.cached_tokens == 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[mp.Model, Path, bytes]:
    """A model, a session of it and its bytes."""
    model = mp.load("tiny", backend="numba", max_lanes=1)
    file = tmp_path_factory.mktemp("damaged") / "one"
    model.generate(CHAT[:20], **GREEDY)
    model.save_session(file, messages=[{"role": "user", "content": "Hello"}])
    return model, file, file.read_bytes()


def require_refused(model: mp.Model, file: Path) -> InputError:
    """Load a file, which raises the error of one line that names it, and leaves the model as it was."""
    with pytest.raises(InputError) as caught:
        model.load_session(file)
    line = str(caught.value)
    assert str(file) in line
    assert "\n" not in line
    assert len(line) < 700
    assert model.manager.lanes == ()
    return caught.value


@given(data=st.data())
def test_damaged_bytes(data: st.DataObject, good: tuple[mp.Model, Path, bytes]) -> None:
    model, path, content = good
    file = path.with_name("damaged")
    changed = content
    for edit in data.draw(damage(1500)):
        changed = edit(changed)
    file.write_bytes(changed)
    if changed != content:
        require_refused(model, file)
    model.manager.forget()
    assert model.load_session(path) == 25


@given(at=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_one_bit(at: int, bit: int, good: tuple[mp.Model, Path, bytes]) -> None:
    model, path, content = good
    file, changed = path.with_name("flipped"), bytearray(content)
    changed[at % len(content)] ^= 1 << bit
    file.write_bytes(changed)
    error = require_refused(model, file)
    assert isinstance(error, CacheError) or 8 <= at % len(content) < 60  # only there one cannot tell what it is


@given(size=st.integers(0, 10**6))
def test_cut_and_appended(size: int, good: tuple[mp.Model, Path, bytes]) -> None:
    model, path, content = good
    file = path.with_name("cut")
    file.write_bytes(content[: size % len(content)])
    require_refused(model, file)
    file.write_bytes(content + b"\0" * (1 + size % 99))
    assert isinstance(require_refused(model, file), CacheError)


Forge = Callable[[dict[str, Any], dict[str, np.ndarray[Any, Any]]], object]


def forged(path: Path, name: str, change: Forge) -> Path:
    """A session whose content was changed and whose digest is right."""
    arrays = load_file(path)
    with safe_open(path, "numpy") as opened:
        content = json.loads(opened.metadata()["mistral_portable.session"].partition(" ")[2])
    change(content, arrays)
    written = json.dumps(content)
    digest = sessions._digest(written, arrays)
    save_file(arrays, path.with_name(name), {"mistral_portable.session": f"{digest} {written}"})
    return path.with_name(name)


def with_tokens(make: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Forge:
    return lambda content, arrays: arrays.update(tokens=np.ascontiguousarray(make(arrays["tokens"])))


def all_arrays(make: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Forge:
    return lambda content, arrays: arrays.update(
        {name: np.ascontiguousarray(make(array)) for name, array in arrays.items() if name != "tokens"}
    )


FORGERIES: dict[str, Forge] = {
    "tokens beyond the vocabulary": with_tokens(lambda tokens: tokens + 10**6),
    "negative tokens": with_tokens(lambda tokens: tokens - 10**6),
    "tokens of another type": with_tokens(lambda tokens: tokens.astype(np.int64)),
    "tokens that are floats": with_tokens(lambda tokens: tokens.astype(np.float32)),
    "tokens in two rows": with_tokens(lambda tokens: tokens[None]),
    "too few tokens": with_tokens(lambda tokens: tokens[1:]),
    "no tokens": with_tokens(lambda tokens: tokens[:0]),
    "tokens are missing": lambda content, arrays: arrays.pop("tokens"),
    "another length": lambda content, arrays: content["lane"].update(length=24),
    "a length that is a string": lambda content, arrays: content["lane"].update(length="25"),
    "a length that is true": lambda content, arrays: (
        content["lane"].update(length=True),
        arrays.update(tokens=arrays["tokens"][:1].copy()),
    ),
    "a huge length": lambda content, arrays: content["lane"].update(length=10**400, high=10**400),
    "a low high": lambda content, arrays: content["lane"].update(high=3),
    "more pages": lambda content, arrays: content["lane"].update({"pages.0": 2}),
    "pages of another size": lambda content, arrays: content["lane"].update({"page_size.0": 10**9}),
    "other begin": lambda content, arrays: content["lane"].update({"begin.0": -1}),
    "another model in the lane": lambda content, arrays: content["lane"].update(model="0" * 32),
    "the lane is empty": lambda content, arrays: content.update(lane={}),
    "the lane is a list": lambda content, arrays: content.update(lane=[1]),
    "much in the lane": lambda content, arrays: content["lane"].update({f"x.{n}": "y\n" * 99 for n in range(999)}),
    "another version": lambda content, arrays: content.update(version=10**300),
    "messages that are text": lambda content, arrays: content.update(messages="Hello"),
    "no settings": lambda content, arrays: content.update(settings={}),
    "settings that are numbers": lambda content, arrays: content.update(settings={"model": [[1]] * 999}),
    "a group too many": lambda content, arrays: arrays.update({"1/keys.0": np.zeros(3, np.float32)}),
    "a group without a number": lambda content, arrays: arrays.update({"keys.0": np.zeros(3, np.float32)}),
    "no arrays": lambda content, arrays: [arrays.pop(name) for name in list(arrays) if name != "tokens"],
    "another layer": lambda content, arrays: arrays.update({"0/keys.99": np.zeros(3, np.float32)}),
    "other pages": all_arrays(lambda array: np.concatenate([array, array])),
    "pages of bits": all_arrays(lambda array: array.view(np.int8)),
    "pages without axes": all_arrays(lambda array: array.ravel()[0].reshape(())),
    "shorter heads": all_arrays(lambda array: array[..., 1:]),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_content(name: str, good: tuple[mp.Model, Path, bytes]) -> None:
    model, path, _ = good
    assert isinstance(require_refused(model, forged(path, "forged", FORGERIES[name])), CacheError)
    assert model.load_session(path) == 25


def test_bfloat16_tensors_are_refused(good: tuple[mp.Model, Path, bytes]) -> None:
    """NumPy has no such type."""
    model, path, content = good
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].replace(b'"U8"', b'"I8"').replace(b'"F32"', b'"U32"')
    file = path.with_name("types")
    file.write_bytes(content[:8] + header + content[8 + size :])
    assert isinstance(require_refused(model, file), CacheError)
    arrays = {"tokens": np.zeros(4, np.float16)}
    save_file(arrays, file, {"mistral_portable.session": json.loads('"x {}"')})
    raw = file.read_bytes().replace(b'"F16"', b'"BF16"').replace(b"}}    ", b"}}   ", 1)
    file.write_bytes(raw)
    assert isinstance(require_refused(model, file), CacheError)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\0" * 100,
        b"Dear diary",
        b'[{"role": "user", "content": "Hi"}]',
        b"\x08\0\0\0\0\0\0\0{}      ",
        b"GGUF" + bytes(99),
    ],
)
def test_a_file_of_another_kind_is_left_as_it_is(content: bytes, model: mp.Model, tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes(content)
    error = require_refused(model, file)
    assert not isinstance(error, CacheError)
    assert "is no session of mistral_portable, and is left as it is: name another file" in str(error)
    model.generate(CHAT, **GREEDY)
    with pytest.raises(InputError, match="is no session of mistral_portable"):
        model.save_session(file)
    assert file.read_bytes() == content


def test_weights_are_no_session(model: mp.Model, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"tokens": np.zeros(3, np.int32)}, file, {"format": "pt"})
    before = file.read_bytes()
    assert "is no session" in str(require_refused(model, file))
    model.generate(CHAT, **GREEDY)
    with pytest.raises(InputError, match="is no session"):
        model.save_session(file)
    assert file.read_bytes() == before


# --- writing ----------------------------------------------------------------------------------------------------------


def test_places_that_cannot_be_written(model: mp.Model, file: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path / "no" / "folder", "cannot be written: .*choose another file"),
        (file / "below a file", "cannot be written: .*choose another file"),
        (Path("/proc/session"), "cannot be written: .*choose another file"),
        (tmp_path / ("x" * 300), "cannot be written: .*choose another file"),
        (Path("a\0b"), "cannot be written: .*null"),
        (tmp_path / "loop", "loop"),
        (tmp_path, "is a folder: name a file for the session"),
        (tmp_path / "pipe", "is not a file"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            model.save_session(path)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", tmp_path / "loop", Path("a\0b")):
        require_refused(model, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.session", "loop", "pipe"]


def test_a_device_is_never_replaced(model: mp.Model, tmp_path: Path) -> None:
    """A link to one: writing beside what it points to would put a file in its place."""
    model.generate(CHAT, **GREEDY)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    for path in (link, Path("/dev/null")):
        with pytest.raises(InputError, match="is not a file"):
            model.save_session(path)
    assert not Path("/dev/null").is_file()


def test_what_a_link_points_to_is_written(model: mp.Model, file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    model.generate(OTHER, **GREEDY)
    model.save_session(link)
    assert link.is_symlink()
    assert load_file(file)["tokens"][: len(OTHER)].tolist() == OTHER


CHILD = """
import safetensors.numpy
import os, signal, sys
import mistral_portable as mp
from mistral_portable.engine import session
ids = list(range(400, 520))
with mp.load("tiny", backend="reference") as model:
    model.generate(ids, max_tokens=2, temperature=0)
    {how}
    try:
        model.save_session(sys.argv[1])
    except mp.MistralPortableError as error:
        print(error)
"""
DIE = "print('killed', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
KILLED = {
    "in the middle": f"""
    def half(arrays, path, metadata):
        path.write_bytes(bytes(9999)); {DIE}
    safetensors.numpy.save_file = half""",
    "before it is on the disk": f"""
    def die(file):
        {DIE}
    os.fsync = die""",
    "before it has its name": f"""
    def die(path, target):
        {DIE}
    session.Path.replace = die""",
}
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"


def child(how: str, file: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", CHILD.format(how=how), str(file)], capture_output=True, text=True)


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[mp.Model, Path]]:
    """A model and a session of it in a folder of its own."""
    with mp.load("tiny", backend="reference") as model:
        model.generate(CHAT, **GREEDY)
        model.save_session(tmp_path / "one")
        yield model, tmp_path / "one"


@pytest.mark.parametrize("when", KILLED)
def test_a_process_that_is_killed_leaves_the_old_file(when: str, old: tuple[mp.Model, Path]) -> None:
    model, file = old
    before = file.read_bytes()
    done = child(KILLED[when], file)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "killed\n"), done.stderr
    assert file.read_bytes() == before
    assert model.load_session(file) == len(CHAT) + 5


def test_a_full_disk_leaves_the_old_file_and_nothing_else(old: tuple[mp.Model, Path]) -> None:
    """A limit on the size of files stands for the disk."""
    _, file = old
    before = file.read_bytes()
    assert len(before) > 20_000
    done = child(FULL, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file}: cannot be written: ")
    assert len(done.stdout.splitlines()) == 1
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["one"]


def test_ctrl_c_leaves_the_old_file_and_nothing_else(
    old: tuple[mp.Model, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = old
    before = file.read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    model.generate(OTHER, **GREEDY)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.save_session(file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["one"]
    assert model.save_session(file) == len(OTHER) + 5
