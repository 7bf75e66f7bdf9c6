"""The documented Flax classes, on the JAX backend, which makes pure functions of graphs."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mistral_portable.boundary import FunctionalBackend, PureFunction
from mistral_portable.boundary.binding import check_tensors
from mistral_portable.boundary.registry import select
from mistral_portable.errors import BackendError, CapacityError, InputError
from mistral_portable.graph import build, verify
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states
from mistral_portable.transformers.arrays import as_numpy, checked_bool
from mistral_portable.transformers.batch import read_batch
from mistral_portable.transformers.checkpoint import open_pretrained
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.decoder import ATTENTIONS, HIDDEN_STATES
from mistral_portable.transformers.frameworks.flax_params import cast, check_shapes, flatten, nest
from mistral_portable.transformers.initial_weights import initial_tensors
from mistral_portable.transformers.options import dtype_name
from mistral_portable.transformers.outputs import (
    FlaxBaseModelOutputWithPast,
    FlaxCausalLMOutputWithCrossAttentions,
    ModelOutput,
)
from mistral_portable.transformers.saving import save_model
from mistral_portable.weights import DenseTensor, Tensor

__all__ = ["FlaxMistralForCausalLM", "FlaxMistralModel", "FlaxMistralPreTrainedModel"]

Params = Mapping[str, Any]


class FlaxMistralPreTrainedModel:
    """Base of the two Flax models.

    params: JAX arrays in nested dictionaries, by the parts of their checkpoint names:
    params["model"]["layers"]["0"]["mlp"]["up_proj"]["weight"] is [intermediate_size, hidden_size].
    Calls are pure functions of params, ids and cache: jax.jit, jax.grad and jax.vmap apply to them.
    """

    head: ClassVar[str] = "none"
    output: ClassVar[Callable[..., ModelOutput]] = FlaxBaseModelOutputWithPast
    result: ClassVar[str] = "last_hidden_state"

    def __init__(
        self,
        config: MistralConfig,
        input_shape: tuple[int, int] = (1, 1),
        seed: int = 0,
        dtype: Any = "float32",
        _do_init: bool = True,
    ) -> None:
        """Make a model with random params.

        seed: of the random numbers. dtype: the type of the computation, jax.numpy.float32, float16 or bfloat16; params
        stay float32 (see `to_bf16`). _do_init: False makes no params; `init_weights` does. input_shape: without effect.
        Raises BackendError if JAX is not installed, InputError for a config or seed of another type.
        """
        if not isinstance(config, MistralConfig):
            raise InputError(f"config is a {type(config).__name__}: pass a MistralConfig")
        if type(seed) is not int or seed < 0:
            raise InputError(f"seed={seed!r:.40} must be an integer from 0 on")
        backend = select("jax")
        if not isinstance(backend, FunctionalBackend):
            raise BackendError(f"backend {backend.name!r} has no pure functions: pip install mistral-portable[jax]")
        self.config, self.dtype, self.input_shape = config, dtype, input_shape
        self._backend, self._dtype = backend, dtype_name(dtype) or "float32"
        self._graph = verify(build(config.native(), head=self.head))
        self._functions: dict[frozenset[str], PureFunction] = {}
        self._params: dict[str, Any] | None = None
        self._function(frozenset())
        for kind in (FlaxBaseModelOutputWithPast, FlaxCausalLMOutputWithCrossAttentions):
            backend.register(kind)
        if _do_init:
            self._params = self._initial(np.random.default_rng(seed))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        dtype: Any = "float32",
        *,
        config: MistralConfig | None = None,
        revision: str | None = None,
        from_pt: bool = False,
        _do_init: bool = True,
        **changed: Any,
    ) -> Any:
        """Load a checkpoint in any format that this library reads; packed weights are unpacked.

        from_pt: without effect. _do_init: False returns the model without params, and the params. config: replaces the
        checkpoint's. changed: fields of the config that get another value. Raises CheckpointError, ConfigError,
        BackendError, or InputError for arguments that do not fit.
        """
        read, tensors, checkpoint = open_pretrained(name, config, changed, revision=revision)
        model = cls(read, dtype=dtype, _do_init=False)
        check_tensors(model._graph, tensors, str(checkpoint.path))
        params = model._read(tensors)
        if not _do_init:
            return model, params
        model._params = params
        return model

    def save_pretrained(self, folder: str | Path, params: Params | None = None) -> None:
        """Write `config.json` and float32 safetensors, for `from_pretrained` here and in transformers.

        params: those to save; None: the model's own. Raises CheckpointError if writing fails.
        """
        arrays = self._flat(params)
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._graph.parameters.items():
            whole = np.asarray(arrays[name]).astype(np.float32)
            for part, values in zip(parameter.parts, np.split(whole, len(parameter.parts)), strict=True):
                tensors[part] = DenseTensor(part, "float32", values)
        save_model(Path(folder), self.config, type(self).__name__.removeprefix("Flax"), tensors)

    @property
    def params(self) -> dict[str, Any]:
        """The model's params, which may be set. Raises InputError if there are none."""
        if self._params is None:
            raise InputError("the model has no params: it was made with _do_init=False; pass params= to its calls")
        return self._params

    @params.setter
    def params(self, params: Params) -> None:
        self._params = nest(self._flat(params))

    def init_weights(
        self, rng: Any, input_shape: tuple[int, int] | None = None, params: Params | None = None
    ) -> Params:
        """Make random params from a key of jax.random; weights in `params` replace them. input_shape: without effect.

        Raises InputError for another `rng`, and for params that are not the model's.
        """
        try:
            seeds = np.asarray(sys.modules["jax"].random.key_data(rng))
        except (TypeError, ValueError) as error:
            raise InputError(f"rng is a {type(rng).__name__}: pass a key of jax.random") from error
        made = {**flatten(self._initial(np.random.default_rng(seeds))), **flatten(params or {})}
        return nest(self._flat(nest(made)))

    def init_cache(self, batch_size: int, max_length: int) -> Mapping[str, Any]:
        """Make an empty cache, the past_key_values of a first call.

        max_length: the columns that it has room for, padding included. Raises InputError for more than
        max_position_embeddings, CapacityError for a batch that no memory holds.
        """
        limit = self.config.max_position_embeddings
        if type(batch_size) is not int or type(max_length) is not int or batch_size < 1 or max_length < 1:
            raise InputError(f"init_cache({batch_size!r}, {max_length!r}): pass two integers from 1 on")
        if max_length > limit:
            raise InputError(f"max_length={max_length} exceeds max_position_embeddings={limit}")
        if batch_size >= 2**31:
            raise CapacityError(f"batch_size={batch_size} is more than there can be memory for: pass fewer rows")
        return self._function(frozenset()).init_cache(batch_size, max_length)

    def to_bf16(self, params: Params, mask: Params | None = None) -> Params:
        """Convert params to bfloat16. mask: nested like params; weights for which it is not true stay as they are."""
        return cast(params, "bfloat16", mask)

    def to_fp16(self, params: Params, mask: Params | None = None) -> Params:
        """Convert params to float16, like `to_bf16`."""
        return cast(params, "float16", mask)

    def to_fp32(self, params: Params, mask: Params | None = None) -> Params:
        """Convert params to float32, like `to_bf16`."""
        return cast(params, "float32", mask)

    def __call__(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        params: Params | None = None,
        past_key_values: Mapping[str, Any] | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model: an output of float32 JAX arrays, 0 at padding.

        input_ids: integers [B, T]. attention_mask: 1 keep, 0 padding, which may be anywhere; [B, T], or with
        past_key_values also [B, past + T] or [B, max_length], of which only the columns of input_ids count.
        position_ids: integers [B, T], required with past_key_values; those of tokens must be consecutive. params: None
        for the model's own. past_key_values: from `init_cache` or an earlier call; it is not changed, the output has
        the longer one. train: requires an attention_dropout of 0 in the config, as there is no dropout; dropout_rng is
        without effect. output_attentions, output_hidden_states, return_dict: None for the config's.

        Raises InputError (a ValueError) for arguments that do not fit. While JAX is tracing only shapes are known: ids
        outside the vocabulary, wrong positions and a full cache are then not noticed.
        """
        if train and (dropout := self.config.to_dict().get("attention_dropout")):
            raise InputError(f"attention_dropout={dropout}: there is no dropout; set it to 0")
        if past_key_values is not None and position_ids is None:
            raise InputError("Make sure to provide `position_ids` when passing `past_key_values`.")
        arrays = self._flat(params)
        ids = input_ids if hasattr(input_ids, "shape") else as_numpy("input_ids", input_ids)
        if len(ids.shape) != 2 or 0 in ids.shape or np.dtype(ids.dtype).kind not in "iu":
            raise InputError(f"input_ids is {ids.dtype} {list(ids.shape)}: pass integers [batch, tokens]")
        if ids.shape[1] > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise InputError(f"{ids.shape[1]} tokens exceed max_position_embeddings={limit}")
        mask = np.ones(ids.shape, np.bool_) if attention_mask is None else attention_mask
        past = self.init_cache(*ids.shape) if past_key_values is None else past_key_values
        self._check(ids, mask, position_ids, past)
        wanted = {
            HIDDEN_STATES: self._requested("output_hidden_states", output_hidden_states),
            ATTENTIONS: self._requested("output_attentions", output_attentions),
        }
        exposed = frozenset(name for name, requested in wanted.items() if requested)
        dictionary = self._requested("return_dict", return_dict)
        outputs, cache = self._function(exposed)(arrays, past, ids, mask)
        output = self.output(
            **{self.result: outputs[self.result]},
            past_key_values=None if past_key_values is None else cache,
            **{name: _series(outputs, name) for name in exposed},
        )
        return output if dictionary else output.to_tuple()

    def _requested(self, name: str, given: bool | None) -> bool:
        """The call's argument, else the config's field. Raises InputError if it is not a bool."""
        return checked_bool(name, getattr(self.config, name) if given is None else given)

    def _check(self, ids: Any, mask: Any, position_ids: Any, past: Mapping[str, Any]) -> None:
        """Raise InputError for inputs that do not fit; while JAX is tracing, only shapes are checked."""
        rows, length = ids.shape
        whole = isinstance(past, Mapping) and "columns" in past and hasattr(past.get("positions"), "shape")
        room: tuple[int, ...] = tuple(past["positions"].shape) if whole else ()
        if len(room) != 2 or room[0] != rows or length > room[1]:
            raise InputError(
                f"past_key_values have the shape {list(room)}, and input_ids {list(ids.shape)}: pass what init_cache, "
                "or a call, has returned"
            )
        shape = np.shape(mask)
        if len(shape) != 2 or shape[0] != rows or not length <= shape[1] <= room[1]:
            raise InputError(f"attention_mask has the shape {list(shape)}: pass 0 and 1 as [{rows}, {length}]")
        if any(_traced(array) for array in (ids, mask, position_ids, past["positions"])):
            return
        done, before = int(past["columns"]), np.asarray(past["positions"])
        if done + length > room[1]:
            raise InputError(f"{done} + {length} columns exceed the cache's max_length={room[1]}")
        read_batch(
            np.asarray(ids),
            as_numpy("attention_mask", mask, 2)[:, : done + length],
            None if position_ids is None else as_numpy("position_ids", position_ids, 2),
            [np.flatnonzero(row >= 0) for row in before],
            done,
            self.config.native(),
        )

    def _function(self, exposed: frozenset[str]) -> PureFunction:
        if exposed not in self._functions:
            graph = self._graph
            if HIDDEN_STATES in exposed:
                graph = expose_hidden_states(graph)
            if ATTENTIONS in exposed:
                graph = expose_attention_weights(graph)
            self._functions[exposed] = self._backend.pure(verify(graph), self._dtype)
        return self._functions[exposed]

    def _initial(self, random: np.random.Generator) -> dict[str, Any]:
        return self._read(initial_tensors(self.config, self.head, 1, random))

    def _read(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        return nest(self._function(frozenset()).weights(tensors))

    def _flat(self, params: Params | None) -> dict[str, Any]:
        found = flatten(self.params if params is None else params)
        check_shapes(found, {name: parameter.shape for name, parameter in self._graph.parameters.items()})
        return found


class FlaxMistralModel(FlaxMistralPreTrainedModel):
    """The decoder without a head; calls return FlaxBaseModelOutputWithPast."""


class FlaxMistralForCausalLM(FlaxMistralPreTrainedModel):
    """The decoder with its LM head; calls return FlaxCausalLMOutputWithCrossAttentions."""

    head: ClassVar[str] = "causal_lm"
    output: ClassVar[Callable[..., ModelOutput]] = FlaxCausalLMOutputWithCrossAttentions
    result: ClassVar[str] = "logits"


def _series(outputs: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    count = sum(key.startswith(f"{name}.") for key in outputs)
    return tuple(outputs[f"{name}.{layer}"] for layer in range(count))


def _traced(array: Any) -> bool:
    return isinstance(array, sys.modules["jax"].core.Tracer)
