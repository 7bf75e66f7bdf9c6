"""MistralConfig with the interface of transformers: attributes that may be set, unknown keys kept."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mistral_portable import config as native
from mistral_portable.errors import ConfigError
from mistral_portable.transformers.without_effect import LOADING, without_effect
from mistral_portable.weights import open_config

__all__ = ["MistralConfig", "known_fields"]

_SPELLED_OTHERWISE = ("rope_scaling", "query_scale")  # transformers has them in `rope_parameters`
_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    for field in fields(native.MistralConfig)
    if field.default is not MISSING and field.name not in _SPELLED_OTHERWISE
}
_LABELS = 2**20  # at most: a config.json may state any number
_OURS = {
    "id2label": {0: "LABEL_0", 1: "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
}
"""Fields that only heads and calls use, with their defaults; written to a `config.json` only where they differ."""


class MistralConfig:
    """The fields that define a model, with transformers' names and defaults; unknown keyword arguments are kept.

    Labels of classifications are named by `id2label`, whose keys are integers; `num_labels` counts them, and another
    number gives them new names: LABEL_0, LABEL_1 and so on.

    Example: `MistralConfig(num_hidden_layers=2, note="mine").to_dict()["note"]` is "mine".

    Raises ConfigError, naming the field, for impossible values. Fields that are set afterwards are checked when a
    model is made.
    """

    model_type = "mistral"
    id2label: Mapping[int, str]
    label2id: Mapping[str, int] | None
    problem_type: str | None
    head_dim: int
    num_key_value_heads: int
    rope_theta: float
    rope_parameters: Mapping[str, Any] | None

    def __init__(self, **values: Any) -> None:
        if wrong := [name for name in values if callable(getattr(type(self), name, None))]:
            raise ConfigError(f"{wrong[0]}: a field cannot have the name of a method")
        values = {name: _plain(value) for name, value in values.items()}
        count = values.pop("num_labels", None)
        if values.get("id2label") is None:
            named = _numbered(2 if count is None else count)
        else:
            named = {"id2label": _by_number(values["id2label"]), "label2id": values.get("label2id")}
        self.__dict__.update(_DEFAULTS | _OURS | values | named)
        if count is not None:
            self.num_labels = count
        checked = self.native()
        self.head_dim, self.num_key_value_heads = checked.head_dim, checked.num_key_value_heads
        self.rope_theta = checked.rope_theta  # in one place, so that it may be set
        if isinstance(rope := values.get("rope_parameters"), Mapping):
            self.rope_parameters = {name: value for name, value in rope.items() if name != "rope_theta"}

    @property
    def num_labels(self) -> int:
        """The number of labels; setting another one names them anew. Raises ConfigError for impossible numbers."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count != self.num_labels:
            self.__dict__.update(_numbered(count))

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError: the field has not been set."""
        raise AttributeError(f"MistralConfig has no {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MistralConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it may change

    def __repr__(self) -> str:
        return f"MistralConfig {self.to_json_string()}"

    def native(self) -> native.MistralConfig:
        """The config that the graph is built from. Raises ConfigError for impossible values."""
        return native.MistralConfig.from_dict({k: v for k, v in self.__dict__.items() if k not in _OURS})

    def to_dict(self) -> dict[str, Any]:
        """The fields under the keys of a `config.json`."""
        own = {name: getattr(self, name) for name, usual in _OURS.items() if getattr(self, name) != usual}
        return {"model_type": self.model_type, **self.native().to_dict(), **own}

    def to_json_string(self) -> str:
        """The fields as the text of a `config.json`, sorted by name."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "MistralConfig":
        """Make a config from the keys of a `config.json`. Raises ConfigError, naming the field."""
        ours = {name: data[name] for name in (*_OURS, "num_labels") if name in data}
        read = native.MistralConfig.from_dict({k: v for k, v in data.items() if k not in ours}).to_dict()
        return cls(**read, **ours)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str = "",
        **changed: Any,
    ) -> "MistralConfig":
        """Read the config of a model in any format of this library; of a folder or a hub id no weights are needed.

        subfolder: of the folder or repository. revision, cache_dir, force_download, local_files_only, token: of the
        download. changed: fields that get another value, and arguments without effect (`without_effect.LOADING`).
        Raises CheckpointError if there is no config, ConfigError for impossible values.
        """
        download = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        found = open_config(name, revision=revision, subfolder=subfolder, **download)
        return cls.from_dict({**found.to_dict(), **without_effect(changed, LOADING, "from_pretrained")})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` into a folder, which is made if needed. Raises ConfigError if it cannot be written."""
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(self.to_json_string() + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{folder}: config.json cannot be written: {error.strerror}") from error


def known_fields(changed: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as fields that get another value. Raises ConfigError if one is not a field of a config."""
    fields = {*vars(MistralConfig()), "num_labels"}
    if unknown := sorted(changed.keys() - fields):
        raise ConfigError(f"{unknown[0]}={changed[unknown[0]]!r:.40}: no argument, and no field of the config")
    return dict(changed)


def _numbered(count: Any) -> dict[str, Any]:
    """`id2label` and `label2id` of a number of labels. Raises ConfigError for other things than 0 to _LABELS."""
    if isinstance(count, bool) or not hasattr(count, "__index__") or not 0 <= count <= _LABELS:
        raise ConfigError(f"num_labels={count!r:.40} must be an integer from 0 to {_LABELS}")
    names = {number: f"LABEL_{number}" for number in range(count)}
    return {"id2label": names, "label2id": {name: number for number, name in names.items()}}


def _by_number(labels: Any) -> dict[int, Any]:
    """Labels with integers as keys, which are strings in JSON. Raises ConfigError for keys that are no numbers."""
    try:
        return {int(key): name for key, name in labels.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"id2label={labels!r:.60} must be an object with integers as keys") from error


def _plain(value: Any) -> Any:
    """torch.float16 and np.float16 become "float16"; other values stay as they are."""
    if type(value).__module__ == "torch" or isinstance(value, type):
        return getattr(value, "__name__", str(value)).removeprefix("torch.")
    return value
