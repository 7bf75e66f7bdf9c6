"""Damaged adapters either open correctly or raise a one-line error of the package, quickly and in little memory."""

import json
import shutil
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf.quants  # noqa: F401  # imported before memory is measured
import numpy as np
import pytest
import torch
from adapters.files import linears, random_changes, write_gguf, write_mlx, write_peft, write_raw
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from weights.damage import NUMBERS, Damage, damage
from weights.files import small_config

from mistral_portable.adapters import open_adapter
from mistral_portable.errors import MistralPortableError

CONFIG = small_config(num_hidden_layers=1)
CHANGES = random_changes(CONFIG, linears(CONFIG), 32, np.random.default_rng(0))
DECODER = {name: change for name, change in CHANGES.items() if name.startswith("model.layers.")}
WEIGHTS = {
    "peft": "adapter_model.safetensors",
    "torch": "adapter_model.bin",
    "mlx": "adapters.safetensors",
    "raw": "lora.safetensors",
    "gguf": "a.gguf",
}
SETTINGS = {"peft": "adapter_config.json", "mlx": "adapter_config.json", "raw": "params.json"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an adapter of each format, in a folder of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    write_peft(folder / "peft", CHANGES, rank_pattern={"q_proj": 32}, alpha_pattern={"layers.0.mlp.*": 3})
    shutil.copytree(folder / "peft", folder / "torch")
    torch.save(load_file(folder / "torch" / WEIGHTS["peft"]), folder / "torch" / WEIGHTS["torch"])
    (folder / "torch" / WEIGHTS["peft"]).unlink()
    write_mlx(folder / "mlx", CHANGES)
    write_raw(folder / "raw", CONFIG, DECODER, 2.0)
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf" / WEIGHTS["gguf"], CONFIG, CHANGES, 32.0, "Q8_0")
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def fresh(folders: Path, scratch: Path, kind: str) -> Path:
    """Make an undamaged copy of an adapter's folder."""
    shutil.rmtree(scratch / kind, ignore_errors=True)
    return Path(shutil.copytree(folders / kind, scratch / kind))


def opens_or_explains(path: Path) -> None:
    explanation = "it opened"
    started = time.process_time()
    tracemalloc.start()
    try:
        adapter = open_adapter(path, CONFIG)
        for change in adapter.low_rank.values():
            assert change.up.numpy().shape[1] == change.down.numpy().shape[0] == change.rank
            assert np.isfinite(change.up.numpy()).all()
    except MistralPortableError as error:
        explanation = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert explanation
    assert explanation.isprintable()  # one line without terminal control characters
    assert peak < 64e6
    assert time.process_time() - started < 10


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_undamaged_adapters_open(folders: Path, kind: str) -> None:
    wanted = DECODER if kind == "raw" else CHANGES
    assert open_adapter(folders / kind, CONFIG).low_rank.keys() == wanted.keys()


@pytest.mark.parametrize("kind", WEIGHTS)
@settings(max_examples=40)  # each writes and opens a folder
@given(damage=damage(header=1500))
def test_damaged_weights(folders: Path, scratch: Path, kind: str, damage: list[Damage]) -> None:
    folder = fresh(folders, scratch, kind)
    data = (folder / WEIGHTS[kind]).read_bytes()
    for edit in damage:
        data = edit(data)
    (folder / WEIGHTS[kind]).write_bytes(data)
    opens_or_explains(folder)


@pytest.mark.parametrize("kind", SETTINGS)
@settings(max_examples=40)  # each writes and opens a folder
@given(damage=damage(header=200))
def test_damaged_settings(folders: Path, scratch: Path, kind: str, damage: list[Damage]) -> None:
    folder = fresh(folders, scratch, kind)
    data = (folder / SETTINGS[kind]).read_bytes()
    for edit in damage:
        data = edit(data)
    (folder / SETTINGS[kind]).write_bytes(data)
    opens_or_explains(folder)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KEYS = {
    "peft": ["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights", "x"],
    "mlx": ["fine_tune_type", "lora_parameters", "peft_type"],
    "raw": ["lora"],
}


@pytest.mark.parametrize("kind", SETTINGS)
@settings(max_examples=60)  # each writes and opens files
@given(data=st.data())
def test_any_json_in_the_settings(folders: Path, scratch: Path, kind: str, data: st.DataObject) -> None:
    folder = fresh(folders, scratch, kind)
    given = json.loads((folder / SETTINGS[kind]).read_text())
    drawn = data.draw(st.dictionaries(st.sampled_from(KEYS[kind]), JSON, min_size=1))
    (folder / SETTINGS[kind]).write_text(json.dumps(given | drawn))
    opens_or_explains(folder)


@settings(max_examples=60)  # each writes and opens files
@given(pattern=st.text(r"ab.*+?()[]{}|^$\dw0123456789,", max_size=60))
def test_any_pattern_is_matched_or_refused(folders: Path, scratch: Path, pattern: str) -> None:
    folder = fresh(folders, scratch, "peft")
    given = json.loads((folder / SETTINGS["peft"]).read_text())
    (folder / SETTINGS["peft"]).write_text(json.dumps(given | {"rank_pattern": {pattern: 32}}))
    opens_or_explains(folder)


def test_tensors_that_share_their_bytes_are_bounded(folders: Path, scratch: Path) -> None:
    """A small torch file can name one storage many times."""
    folder = fresh(folders, scratch, "torch")
    large = torch.ones(32, 64)
    names = [f"base_model.model.model.layers.0.mlp.up_proj.lora_A.x{n}.weight" for n in range(200)]
    torch.save(dict.fromkeys(names, large), folder / WEIGHTS["torch"])
    opens_or_explains(folder)
    one = {f"base_model.model.model.layers.0.self_attn.{m}_proj.lora_A.weight": large for m in "qkv"}
    torch.save(one, folder / WEIGHTS["torch"])
    with pytest.raises(MistralPortableError, match="its tensors overlap"):
        open_adapter(folder, CONFIG)
