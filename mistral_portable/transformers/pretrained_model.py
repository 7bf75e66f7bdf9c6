"""MistralPreTrainedModel: making, saving and calling the documented models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions
from mistral_portable.boundary.registry import select
from mistral_portable.engine.block_maker import block_maker
from mistral_portable.errors import InputError
from mistral_portable.graph import build
from mistral_portable.transformers.arrays import Library, as_numpy, checked_bool, integers, library_of
from mistral_portable.transformers.batch import Batch, read_batch
from mistral_portable.transformers.cache import Cache
from mistral_portable.transformers.checkpoint import open_pretrained
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.decoder import ATTENTIONS, HIDDEN_STATES, Decoder, Outputs
from mistral_portable.transformers.generation_config import GenerationConfig
from mistral_portable.transformers.initial_weights import initial_tensors
from mistral_portable.transformers.new_caches import DynamicCache, StaticCache
from mistral_portable.transformers.options import BitsAndBytesConfig, backend_options, ggml_type
from mistral_portable.transformers.outputs import ModelOutput
from mistral_portable.transformers.packing import Packing, masked_texts, restarted_texts
from mistral_portable.transformers.saving import save_model
from mistral_portable.transformers.without_effect import CALLING, LOADING, without_effect
from mistral_portable.weights import Tensor

__all__ = ["Embedding", "MistralPreTrainedModel", "Result"]

_OF_CONFIG = ("dtype", "torch_dtype", "device_map", "attn_implementation")
"""Arguments of `from_pretrained` that `from_config` has, too."""


class MistralPreTrainedModel:
    """Base of the documented models.

    A call takes arrays of NumPy, torch, MLX or JAX, or lists, and returns arrays of the same library.

    input_ids: integers [B, T]. inputs_embeds: floats [B, T, hidden_size] in place of the ids' embeddings.
    attention_mask: 1 keep, 0 padding, [B, T] or, with a cache, [B, past + T]. Padding may be anywhere; each row gives
    what it gives alone, and outputs at padding are 0. Of four axes: see `packing.masked_texts`.
    past_key_values: the Cache that an earlier call returned; pass only the ids that follow.
    use_cache: whether to return a cache. output_hidden_states, output_attentions: whether to return them; the first
    call with either prepares a program that exposes them, which reads the weights again. return_dict: False for a
    tuple. Where these are None the config's fields apply.
    position_ids, cache_position: accepted where they agree with the mask and the cache. Without either, position_ids
    that begin anew at 0 tell texts apart that are packed into a row; each gives what it gives alone.

    Raises InputError (a ValueError) for arguments that do not fit, BusyError if a cache is to be returned and too few
    lanes are left (calls without a cache run in turns), and the errors of `Decoder.run`.
    """

    head: ClassVar[str] = "none"

    def __init__(
        self,
        config: MistralConfig,
        *,
        backend: str = "auto",
        tensors: Mapping[str, Tensor] | None = None,
        options: ExecutorOptions | None = None,
        source: str = "the config",
        generation_config: GenerationConfig | None = None,
    ) -> None:
        """Make a model from a config.

        tensors: the weights by their checkpoint names; None: random ones (see `initial_tensors`). backend: the
        executor's name; "auto" takes the best one that can run here. source: where the weights are from, for messages.
        generation_config: defaults of `generate`; None: the config's special tokens.
        Raises CheckpointError for weights that do not fit, and the errors of `boundary.prepare`.
        """
        self.config = config
        self.generation_config = generation_config or GenerationConfig.from_model_config(config)
        """Defaults of `generate`, which may be changed."""
        labels = int(config.num_labels)
        if tensors is None:
            tensors = initial_tensors(config, self.head, labels)
        self.tensors = tensors
        self.decoder = Decoder(
            config.native(),
            tensors,
            select(backend),
            options or ExecutorOptions(),
            head=self.head,
            num_labels=labels,
            source=source,
        )

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: MistralConfig | None = None,
        backend: str = "auto",
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        use_flash_attention_2: bool = False,
        quantization_config: Any = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        generation_config: GenerationConfig | None = None,
        subfolder: str = "",
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        use_auth_token: str | bool | None = None,
        **changed: Any,
    ) -> Self:
        """Load a checkpoint in any format that this library reads.

        name: a folder, a file, a hub id or "tiny". config: replaces the checkpoint's. backend: the executor's name.
        dtype (older: torch_dtype): a name, or a dtype of NumPy or torch; "auto" or None: the backend's choice.
        device_map: "auto", or a device of the backend torch, also as {"": device}. attn_implementation: an attention
        kernel of the backend torch; use_flash_attention_2=True is an older spelling of "flash_attention_2".
        quantization_config: a BitsAndBytesConfig; load_in_4bit, load_in_8bit: older spellings of one.
        generation_config: replaces the checkpoint's. subfolder: of the folder or repository. revision, cache_dir,
        force_download, local_files_only, token (older: use_auth_token): of the download. changed: fields of the config
        that get another value, and arguments without effect (`without_effect.LOADING`).

        Raises CheckpointError, ConfigError, BackendError, or InputError for arguments that do not fit.
        """
        if use_flash_attention_2:
            if attn_implementation not in (None, "flash_attention_2"):
                raise InputError(f"{attn_implementation=} and {use_flash_attention_2=}: pass one of them")
            attn_implementation = "flash_attention_2"
        if load_in_4bit or load_in_8bit:
            if quantization_config is not None:
                raise InputError("load_in_4bit and load_in_8bit are fields of quantization_config: pass only that")
            quantization_config = BitsAndBytesConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
        chosen = select(backend)
        blocks = ggml_type(chosen, quantization_config)
        read, tensors, checkpoint = open_pretrained(
            name,
            config,
            without_effect(changed, LOADING, "from_pretrained"),
            revision=revision,
            quantize=blocks,
            make=block_maker(),
            subfolder=subfolder,
            hub={
                "cache_dir": cache_dir,
                "force_download": force_download,
                "local_files_only": local_files_only,
                "token": use_auth_token if token is None else token,
            },
        )
        options = backend_options(
            chosen, torch_dtype if dtype is None else dtype, device_map, attn_implementation, quantization_config
        )
        return cls(
            read,
            backend=chosen.name,
            tensors=tensors,
            options=options,
            source=str(checkpoint.path),
            generation_config=generation_config
            or (GenerationConfig(**checkpoint.generation) if checkpoint.generation else None),
        )

    @classmethod
    def from_config(cls, config: MistralConfig, *, backend: str = "auto", **loading: Any) -> Self:
        """Make a model of a config with random weights (see `initial_tensors`).

        loading: dtype, torch_dtype, device_map, attn_implementation, as in `from_pretrained`. Raises InputError for
        others and for what is no config, and the errors of `boundary.prepare`.
        """
        if not isinstance(config, MistralConfig):
            raise InputError(f"config is a {type(config).__name__}: pass a MistralConfig")
        if unknown := sorted(loading.keys() - _OF_CONFIG):
            raise InputError(f"from_config has no argument {unknown[0]}; there are {', '.join(_OF_CONFIG)}")
        dtype, older, device_map, attention = (loading.get(name) for name in _OF_CONFIG)
        chosen = select(backend)
        options = backend_options(chosen, older if dtype is None else dtype, device_map, attention)
        return cls(config, backend=chosen.name, options=options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json`, `generation_config.json` if it says more, and safetensors, for transformers and for
        `from_pretrained`.

        Packed weights become float32. Files of these names are replaced once the new ones are complete. Raises
        CheckpointError if writing fails, ConfigError for a model that transformers has no class for.
        """
        graph = build(self.config.native(), head=self.head, num_labels=int(self.config.num_labels))
        tensors = {name: self.tensors[name] for name in graph.tensors}
        name = type(self).__name__.removeprefix("TF")
        implied = GenerationConfig.from_model_config(self.config)
        stated = None if self.generation_config == implied else self.generation_config.to_diff_dict()
        save_model(Path(folder), self.config, name, tensors, stated)

    def get_input_embeddings(self) -> "Embedding":
        """The embedding table: `model.get_input_embeddings()(input_ids)` gives their `inputs_embeds`."""
        return Embedding(self.tensors["model.embed_tokens.weight"].numpy(np.float32))

    def eval(self) -> Self:
        """Return the model unchanged, for code that calls it like a torch module; there is no training mode."""
        return self

    @property
    def device(self) -> str:
        """The device, for `.to(model.device)`: "cpu" or, on the backend torch, one such as "cuda:0"."""
        return str(getattr(self.decoder.program, "device", "cpu"))

    def to(self, device: Any) -> Self:
        """Return the model, which must be on the device already.

        device: "cuda" is any CUDA device, a number one CUDA device. Raises InputError for other devices:
        `from_pretrained(device_map=...)` chooses one.
        """
        if not isinstance(device, str | int) and type(device).__name__ != "device":
            raise InputError(f"{device!r:.40} is no device; a dtype is chosen as the model is loaded, with dtype=")
        at, name = self.device.partition(":")[0], f"cuda:{device}" if isinstance(device, int) else str(device)
        if name.partition(":")[0] != at:
            raise InputError(f"the model is on {at}: to have it on {name}, load it with device_map={name!r}")
        return self

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.forward(*arguments, **without_effect(named, CALLING, "the call"))

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Run the model on inputs; each class documents its own arguments and outputs."""
        raise NotImplementedError

    def close(self) -> None:
        """Release the executor's threads and memory; later calls raise ClosedError."""
        self.decoder.close()

    def require_own(self, past_key_values: Any) -> None:
        """Raise InputError for anything but None and a Cache of this model."""
        if past_key_values is not None and not isinstance(past_key_values, Cache):
            kind = type(past_key_values).__name__
            raise InputError(f"past_key_values is a {kind}: pass the Cache that a call of this model has returned")
        is_new = isinstance(past_key_values, DynamicCache) and past_key_values.is_new
        if past_key_values is not None and not is_new and past_key_values.manager is not self.decoder.manager:
            raise InputError("past_key_values are another model's: pass what a call of this one has returned")

    def _exposed(self, output_hidden_states: bool | None, output_attentions: bool | None) -> frozenset[str]:
        """The outputs to expose besides the result."""
        wanted = {
            HIDDEN_STATES: self._requested("output_hidden_states", output_hidden_states),
            ATTENTIONS: self._requested("output_attentions", output_attentions),
        }
        return frozenset(name for name, requested in wanted.items() if requested)

    def _requested(self, name: str, given: bool | None) -> bool:
        """The call's argument, else the config's field. Raises InputError if it is not a bool."""
        return checked_bool(name, getattr(self.config, name) if given is None else given)

    def _run(
        self,
        input_ids: Any,
        attention_mask: Any,
        position_ids: Any,
        past_key_values: Cache | None,
        inputs_embeds: Any,
        use_cache: bool | None,
        exposed: frozenset[str],
        cache_position: Any = None,
        columns: Any = None,
    ) -> "Result":
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("You must specify exactly one of input_ids or inputs_embeds")
        library = library_of(inputs_embeds if input_ids is None else input_ids, attention_mask)
        ids = None if input_ids is None else as_numpy("input_ids", input_ids, 2)
        given = as_numpy("inputs_embeds", inputs_embeds, 3) if ids is None else ids
        self.require_own(past_key_values)
        if isinstance(past_key_values, DynamicCache) and past_key_values.is_new:
            self.decoder.new_cache(len(given), past_key_values)
            try:
                return self._run(
                    input_ids,
                    attention_mask,
                    position_ids,
                    past_key_values,
                    inputs_embeds,
                    use_cache,
                    exposed,
                    cache_position,
                    columns,
                )
            except BaseException:
                past_key_values.forget()
                raise
        if past_key_values is not None and len(past_key_values) != len(given):
            raise InputError(f"the input has {len(given)} rows, and past_key_values {len(past_key_values)}")
        mask = None if attention_mask is None else as_numpy("attention_mask", attention_mask)
        positions = None if position_ids is None else as_numpy("position_ids", position_ids, 2)
        packing = self._packing(mask, positions, given.shape[:2], past_key_values)
        if packing is not None:
            mask, positions = packing.mask, None
        batch = read_batch(
            given,
            None if mask is None else as_numpy("attention_mask", mask, 2),
            positions,
            [np.zeros(0, np.intp)] * len(given) if past_key_values is None else past_key_values.columns,
            0 if past_key_values is None else past_key_values.get_seq_length(),
            self.decoder.config,
        )
        if cache_position is not None:
            first = 0 if past_key_values is None else past_key_values.get_seq_length()
            if integers("cache_position", cache_position).tolist() != list(range(first, first + batch.shape[1])):
                raise InputError(f"cache_position must count the columns from {first} on; leave it out")
        if isinstance(past_key_values, StaticCache):
            past_key_values.require_room(batch.shape[1])
        rows = None if columns is None else _columns(columns, batch.shape[1])
        returned = self._requested("use_cache", use_cache)
        if packing is not None and packing.is_packed:
            if use_cache:
                raise InputError("use_cache=True: there is no cache of rows that hold several texts; leave it out")
            outputs = packing.packed(self.decoder.run(packing.unpacked(batch), None, exposed))
            if rows is not None:
                outputs["logits"] = outputs["logits"][:, rows]
            return Result(library, ids, batch, outputs, None, exposed)
        past = self.decoder.new_cache(len(given)) if returned and past_key_values is None else past_key_values
        try:
            outputs = self.decoder.run(batch, past, exposed, rows)
        except BaseException:
            if past is not None and past is not past_key_values:
                past.close()  # else a kept exception, whose frames hold the cache, keeps its lanes
            raise
        return Result(library, ids, batch, outputs, past if returned else None, exposed)

    def _packing(
        self, mask: NDArray[Any] | None, positions: NDArray[Any] | None, shape: tuple[int, int], past: Cache | None
    ) -> Packing | None:
        """The texts that a mask of four axes, or positions that begin anew, tell apart; None for other inputs."""
        if mask is not None and mask.ndim == 4:
            if past is not None:
                raise InputError("attention_mask of four axes goes without past_key_values: pass one of two axes")
            return masked_texts(mask, positions, self.decoder.config, shape)
        return None if positions is None or mask is not None or past is not None else restarted_texts(positions, shape)

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        return output if self._requested("return_dict", return_dict) else output.to_tuple()


class Embedding:
    """The embedding table, called like torch's module of that name."""

    def __init__(self, weight: NDArray[np.float32]) -> None:
        """weight: float32 [vocab_size, hidden_size]."""
        self.weight = weight

    def __call__(self, input_ids: Any) -> Any:
        """Look up ids [B, T]: float32 [B, T, hidden_size], an array of the same library.

        Raises InputError for ids outside the vocabulary.
        """
        ids, size = integers("input_ids", input_ids), len(self.weight)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise InputError(f"input_ids: token ids are 0 .. {size - 1}, got {int(ids.min())} .. {int(ids.max())}")
        return library_of(input_ids).make(self.weight[ids])


class Result:
    """The outputs of a run, in NumPy and as arrays of the caller's library."""

    def __init__(
        self,
        library: Library,
        ids: NDArray[Any] | None,
        batch: Batch,
        outputs: Outputs,
        past: Cache | None,
        exposed: frozenset[str],
    ) -> None:
        self.ids, self.batch, self.outputs, self.past = ids, batch, outputs, past
        self._library, self._exposed = library, exposed

    def make(self, array: Any) -> Any:
        """The array in the caller's library; None for None."""
        return None if array is None else self._library.make(np.asarray(array))

    def series(self, name: str) -> tuple[Any, ...] | None:
        """The `hidden_states` or `attentions` of each layer; None if they were not requested."""
        if name not in self._exposed:
            return None
        count = sum(key.startswith(f"{name}.") for key in self.outputs)
        return tuple(self.make(self.outputs[f"{name}.{layer}"]) for layer in range(count))

    @property
    def exposed(self) -> dict[str, Any]:
        """Hidden states and attentions, as fields of an output."""
        return {name: self.series(name) for name in (HIDDEN_STATES, ATTENTIONS)}


def _columns(wanted: Any, length: int) -> list[int] | None:
    """The columns that `logits_to_keep` names; None: all. Raises InputError for columns outside the input."""
    if isinstance(wanted, int | np.integer):
        if wanted < 0:
            raise InputError(f"logits_to_keep={wanted} must be 0 (all), or how many of the last, or columns")
        return list(range(max(0, length - int(wanted)), length)) if wanted else None
    columns = as_numpy("logits_to_keep", wanted, 1)
    if columns.dtype.kind not in "iu" or np.any(columns < -length) or np.any(columns >= length):
        raise InputError(f"logits_to_keep={columns.tolist()!r:.60} must be columns within {length}")
    return [int(column) % length for column in columns]
