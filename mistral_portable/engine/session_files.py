"""SessionFiles: what a model knows of a text, written to files and read again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from mistral_portable.boundary import SavedLane
from mistral_portable.engine.adapters import Adapters
from mistral_portable.engine.core import Core
from mistral_portable.engine.loop import Loop
from mistral_portable.engine.prompts import Messages
from mistral_portable.engine.request import salt_of
from mistral_portable.engine.session import Session, read_session, write_session
from mistral_portable.engine.steps import Text
from mistral_portable.errors import CacheError, InputError

__all__ = ["SessionFiles"]


class SessionFiles:
    """Writes and reads a model's session files, between two steps of its loop."""

    def __init__(self, core: Core, loop: Loop, adapters: Adapters, *, backend: str, vocab_size: int) -> None:
        """backend: its name."""
        self._core = core
        self._loop = loop
        self._adapters = adapters
        self._backend = backend
        self._vocab_size = vocab_size

    def save(self, path: str | Path, wanted: Text | None, messages: Messages | None) -> int:
        """Write the longest known beginning of the tokens `wanted`, or of the text that ended last; return its length.

        Errors: those of `Model.save_session`.
        """
        file = self._checked(path)

        def take() -> tuple[Text, SavedLane]:
            text = self._loop.last_text if wanted is None else wanted
            return text, self._core.save_known(text.tokens, salt_of("", text.adapters))

        (tokens, adapters), lane = self._loop.between_steps(take)
        count = int(lane.integers["length"])
        if not count:
            fault = "this text is not in the cache: generate from it first, or raise cache_bytes"
            raise InputError(f"{path}: nothing to save: {fault if tokens else 'generate a text first'}")
        named = self._adapters.named(tuple(adapters))
        write_session(file, Session(tokens[:count], lane, messages, named), self._settings())
        return count

    def load(self, path: str | Path) -> int:
        """Make a file's text known; return the number of its tokens that are. Errors: those of `Model.load_session`."""
        session = read_session(self._checked(path), self._settings(), self._vocab_size)
        adapters = self._adapters.found(session.adapters)
        if adapters is None:
            raise CacheError(f"{path}: it is of an adapter that this model has not: load it, too, or name another file")
        salt = salt_of("", adapters)
        try:
            return self._loop.between_steps(lambda: self._core.make_known(session.lane, session.tokens, salt))
        except CacheError as error:
            raise CacheError(f"{path}: {str(error)[:400]}, or name another file") from error

    def _checked(self, path: str | Path) -> Path:
        if not isinstance(path, str | Path):
            raise InputError(f"path={path!r:.40} must be a string or a Path")
        if not self._core.manager.keeps:
            raise InputError("nothing is kept with cache_bytes=0: load the model with another value to use sessions")
        return Path(path)

    def _settings(self) -> Mapping[str, str]:
        """All that keys and values depend on, beside the tokens."""
        precision = {name: str(value) for name, value in asdict(self._core.program.precision).items()}
        return {"model": self._core.manager.model, "backend": self._backend, **precision}
