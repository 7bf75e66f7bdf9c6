"""AttentionMaskVisualizer: shows which tokens of a text attend to which, as a grid of characters or a picture."""

from html import escape
from pathlib import Path

from mistral_portable.cache import visible
from mistral_portable.config import Window
from mistral_portable.errors import InputError
from mistral_portable.tokenizer import load_tokenizer
from mistral_portable.weights import open_checkpoint

__all__ = ["AttentionMaskVisualizer", "grid"]

_GREEN, _RESET = "\033[92m", "\033[0m"
_SEEN, _HIDDEN = "■", "⬚"
_CELL = 18  # pixels of a picture


def grid(words: list[str], window: Window) -> str:
    """Draw queries as rows and keys as columns: ■ visible (green: the query itself), ⬚ hidden.

    A second panel applies the window, if there is one. The format is that of transformers'
    `generate_attention_matrix_from_mask`.

    Example, three words and window 2, without the headers:

        'a':  0 ■ ⬚ ⬚    |    ■ ⬚ ⬚
        'b':  1 ■ ■ ⬚    |    ■ ■ ⬚
        'c':  2 ■ ■ ■    |    ⬚ ■ ■
    """
    count, width = len(words), max(len(repr(word)) for word in words)
    windows: list[Window] = [None] if window is None else [None, window]
    margin = " " * (width + 5)
    lines = [f" {_GREEN}{_SEEN}{_RESET}: i == j (diagonal)   {_SEEN}: seen   {_HIDDEN}: hidden"]
    titles = ["Attention Matrix".ljust(count + 4), "Sliding Window Mask"]
    lines.append(margin + "".join(titles[: len(windows)]))
    numbers = [str(index).rjust(len(str(count))) for index in range(count)]
    lines += [margin + "    |    ".join([" ".join(digits)] * len(windows)) for digits in zip(*numbers, strict=True)]
    for query, word in enumerate(words):
        panels = [" ".join(_cell(query, key, one) for key in range(count)) for one in windows]
        lines.append(f"{repr(word).ljust(width)}: {str(query).rjust(2)} {'    |    '.join(panels)}")
    return "\n".join(lines)


class AttentionMaskVisualizer:
    """Draws the attention mask of a text for a checkpoint's tokenizer and windows; no weights are read."""

    def __init__(self, model_name: str | Path) -> None:
        """Open a checkpoint; model_name: see `from_pretrained`. Raises InputError if it has no tokenizer."""
        checkpoint = open_checkpoint(model_name)
        if checkpoint.tokenizer is None:
            raise InputError(
                f"{checkpoint.path} has no tokenizer: put tokenizer.model or tekken.json beside the weights"
            )
        self.config = checkpoint.config
        self._tokenizer = load_tokenizer(checkpoint.tokenizer)
        self._name = str(model_name)

    def __call__(self, input_sentence: str, suffix: str = "") -> None:
        """Print the grid of a text. suffix: for models that read images; must be empty here."""
        print(self.text(input_sentence, suffix))

    def text(self, input_sentence: str, suffix: str = "") -> str:
        """The grid of a text, with ANSI colours; one grid for each different window of the layers."""
        if suffix:
            raise InputError(f"suffix={suffix!r} is for models that see images: leave it out")
        words = self._words(input_sentence)
        windows = dict.fromkeys(self.config.layer_windows)
        title = f"Attention visualization for mistral: {self._name}"
        return "\n".join([title, *(grid(words, window) for window in windows)])

    def save(self, input_sentence: str, path: str | Path) -> None:
        """Write a picture with one panel for each different window of the layers.

        path: a name that ends in .svg or .png. Raises InputError for another ending, an empty text or a path that
        cannot be written.
        """
        path = Path(path)
        words, windows = self._words(input_sentence), list(dict.fromkeys(self.config.layer_windows))
        if path.suffix not in (".svg", ".png"):
            raise InputError(f"{path}: the name must end in .svg or .png")
        try:
            if path.suffix == ".svg":
                path.write_text(_svg(words, windows), encoding="utf-8")
            else:
                _png(words, windows, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error

    def _words(self, text: str) -> list[str]:
        tokens = self._tokenizer.encode(text, bos=False)
        if not tokens:
            raise InputError("the text is empty: give some")
        return [self._tokenizer.token_bytes(token).decode("utf-8", "replace") for token in tokens]


def _cell(query: int, key: int, window: Window) -> str:
    if query == key:
        return f"{_GREEN}{_SEEN}{_RESET}"
    return _SEEN if visible(query, key, window) else _HIDDEN


def _colour(query: int, key: int, window: Window) -> str:
    if query == key:
        return "#2e9e4f"
    return "#30343b" if visible(query, key, window) else "#e4e6ea"


def _panels(words: list[str], windows: list[Window]) -> tuple[int, list[tuple[int, str, Window]]]:
    """The width of the words' column in pixels, and for each panel its left edge, title and window."""
    label, side = 8 * max(len(repr(word)) for word in words) + 16, len(words) * _CELL
    titles = ["plain causal" if window is None else f"window {window}" for window in windows]
    return label, [
        (label + number * (max(side, 100) + 2 * _CELL), title, window)
        for number, (title, window) in enumerate(zip(titles, windows, strict=True))
    ]


def _svg(words: list[str], windows: list[Window]) -> str:
    label, panels = _panels(words, windows)
    height = (len(words) + 2) * _CELL
    width = panels[-1][0] + max(len(words) * _CELL, 100) + _CELL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="monospace" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="white"/>'
    ]
    for row, word in enumerate(words):
        parts.append(f'<text x="{label - 8}" y="{(row + 2) * _CELL - 5}" text-anchor="end">{escape(repr(word))}</text>')
    for left, title, window in panels:
        parts.append(f'<text x="{left}" y="{_CELL - 5}">{title}</text>')
        for query in range(len(words)):
            for key in range(len(words)):
                place = f'x="{left + key * _CELL}" y="{(query + 1) * _CELL}" width="{_CELL - 2}" height="{_CELL - 2}"'
                parts.append(f'<rect {place} fill="{_colour(query, key, window)}"/>')
    return "\n".join([*parts, "</svg>\n"])


def _png(words: list[str], windows: list[Window], path: Path) -> None:
    from PIL import Image, ImageDraw

    label, panels = _panels(words, windows)
    size = panels[-1][0] + max(len(words) * _CELL, 100) + _CELL, (len(words) + 2) * _CELL
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for row, word in enumerate(words):
        draw.text((label - 8, (row + 1) * _CELL + 2), ascii(word), fill="black", anchor="ra")
    for left, title, window in panels:
        draw.text((left, 3), title, fill="black")
        for query in range(len(words)):
            for key in range(len(words)):
                x, y = left + key * _CELL, (query + 1) * _CELL
                draw.rectangle((x, y, x + _CELL - 3, y + _CELL - 3), fill=_colour(query, key, window))
    image.save(path)
