"""Every error that a user can cause. Each message is one line: the thing, the value and the remedy."""

__all__ = [
    "BackendError",
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "GraphError",
    "InputError",
    "MistralPortableError",
    "TokenizerError",
]


class MistralPortableError(Exception):
    """Base of all errors of this package; the command line prints it as one line and exits with 1."""


class ConfigError(MistralPortableError, ValueError):
    """A model configuration holds an impossible or unsupported value; the message names the field."""


class GraphError(MistralPortableError, ValueError):
    """A graph breaks a rule of `graph/ops.py`; the message names the node."""


class CheckpointError(MistralPortableError):
    """A checkpoint is missing, unreadable, of unknown format, truncated, corrupt or incomplete."""


class TokenizerError(MistralPortableError):
    """The tokenizer is missing or broken, or cannot encode what was asked."""


class InputError(MistralPortableError, ValueError):
    """A prompt, token id, context length or sampling value is out of its range."""


class CacheError(MistralPortableError):
    """The cache manager cannot do what was asked: no free lane, a rollback beyond the slack, a full context."""


class BackendError(MistralPortableError):
    """A backend is unknown, not installed, unusable on this machine, or lacks an operation."""
