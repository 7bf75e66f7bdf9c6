"""The grid is that of transformers; pictures show the same."""

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.utils.attention_visualizer import generate_attention_matrix_from_mask

from mistral_portable.transformers import AttentionMaskVisualizer
from mistral_portable.transformers.attention_visualizer import grid

words = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6), min_size=1, max_size=20)


@given(words=words, window=st.integers(1, 8))
def test_the_grid_is_theirs(words: list[str], window: int) -> None:
    """Except for the legend, which explains every sign and says nothing of images."""
    mask = torch.tril(torch.ones(len(words), len(words)))
    wanted = cast(Any, generate_attention_matrix_from_mask)(words, mask, img_token="\udfff", sliding_window=window)
    assert grid(words, window).split("\n")[1:] == wanted.split("\n")[1:]


@given(words=words)
def test_without_a_window_there_is_one_panel(words: list[str]) -> None:
    lines = grid(words, None).split("\n")
    rows = [re.sub(r"\033\[\d+m", "", line)[-(2 * len(words) - 1) :] for line in lines[-len(words) :]]
    assert rows == [" ".join("■" * (i + 1) + "⬚" * (len(words) - i - 1)) for i in range(len(words))]


def test_the_pages_example(capsys: pytest.CaptureFixture[str]) -> None:
    visualizer = AttentionMaskVisualizer("tiny")
    visualizer("Do you have mayonnaise recipes?")
    printed = re.sub(r"\033\[\d+m", "", capsys.readouterr().out)
    assert "Attention visualization for mistral: tiny" in printed
    assert "Sliding Window Mask" in printed
    rows = [line for line in printed.split("\n") if re.match("' ?[a-z?D ]*' *:", line)]
    assert [row.split("'")[1] for row in (rows[0], rows[4], rows[-1])] == [" D", " have", "?"]
    for number, row in enumerate(rows):  # the embedded model's window is longer than this text
        left, right = row.split(f" {number} ")[1].split("    |    ")
        assert left.split() == right.split() == ["■"] * (number + 1) + ["⬚"] * (len(rows) - number - 1)


def test_pictures(tmp_path: Path) -> None:
    visualizer = AttentionMaskVisualizer("tiny")
    visualizer.save("Once upon a <time>", tmp_path / "mask.svg")
    svg = (tmp_path / "mask.svg").read_text()
    count = svg.count("text-anchor")
    assert svg.count("#2e9e4f") == count
    assert svg.count("#30343b") == count * (count - 1) // 2  # the window is 64
    assert "<time" not in svg
    visualizer.save("Once upon a time", tmp_path / "mask.png")
    pixels = np.asarray(Image.open(tmp_path / "mask.png"))
    assert (pixels == (0x2E, 0x9E, 0x4F)).all(-1).any()


def test_nonsense_is_one_line(tmp_path: Path) -> None:
    visualizer = AttentionMaskVisualizer("tiny")
    with pytest.raises(ValueError, match="the text is empty"):
        visualizer("")
    with pytest.raises(ValueError, match=r"must end in \.svg or \.png"):
        visualizer.save("Hi", tmp_path / "mask.gif")
    with pytest.raises(ValueError, match="suffix='x'"):
        visualizer("Hi", suffix="x")
