"""Models in stages: where an opened one is cut, and its stages in processes or on a Ray cluster."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from mistral_portable.boundary import Backend
from mistral_portable.boundary.backend import check_supported
from mistral_portable.boundary.registry import select
from mistral_portable.clusters import join
from mistral_portable.engine.opening import Opened, Opening
from mistral_portable.errors import CheckpointError, InputError
from mistral_portable.graph.stages import even_cuts
from mistral_portable.staging import Made, Stage, StagedProgram, make_part
from mistral_portable.staging.processes import ProcessStage

__all__ = ["Cuts", "choose_cuts", "make_stage", "start_stages"]

Cuts = tuple[int, ...]
"""The layers that begin a stage, but for the first one."""


def choose_cuts(opened: Opened, stages: int) -> Cuts:
    """Cut a model into stages of about as many bytes of weights. Raises InputError for more stages than layers."""
    layers = opened.config.num_hidden_layers
    if stages > layers:
        raise InputError(f"stages={stages} must be at most {layers}, the number of layers")
    return even_cuts(opened.graph, stages, {name: opened.tensors[name].nbytes for name in opened.graph.tensors})


def start_stages(opening: Opening, opened: Opened, backend: Backend, cuts: Cuts, ray: str | None) -> StagedProgram:
    """Start a stage for each part of the layers, and one more than there are cuts.

    All compute in the dtype that the backend chooses for the whole model. ray: the address of a cluster whose machines
    run them at the same time, or "local"; None: processes. Those of this machine work at the same time if
    `options.threads` says how many threads each has; else each has the backend's choice, and they take turns. Raises
    the errors of `boundary.prepare`, and BackendError without Ray.
    """
    count = len(cuts) + 1
    options = opening.options
    check_supported(backend, opened.graph, options)
    weights = {name: opened.tensors[name] for name in opened.graph.tensors}
    own = replace(options, dtype=options.dtype or backend.default_dtype(weights, options), progress=None)
    adapters = {name: _anywhere(path) for name, path in opening.adapters.items()}
    elsewhere = replace(opening, options=own, model=_anywhere(opening.model), adapters=adapters)
    ends = pairwise((0, *cuts, opened.config.num_hidden_layers))
    stages, start = list[Stage](), ProcessStage if ray is None else _actors(ray, count, options.threads or 1)
    try:
        for index, (begin, end) in enumerate(ends):
            name = f"stage {index + 1} of {count} (layers {begin} to {end - 1})"
            stages.append(start(name, partial(make_stage, elsewhere, cuts, index, opened.fingerprint)))
    except BaseException:
        for stage in stages:
            stage.close()
        raise
    # A kernel reads its weights once for all sequences of a step: on the same CPUs, all of them in one step are faster
    # than stages that each have some of the CPUs and some of the sequences.
    together = ray not in (None, "local") or options.threads is not None
    return StagedProgram(stages, options.progress, depth=count if together else 1)


def make_stage(opening: Opening, cuts: Cuts, stage: int, weights: str) -> Made:
    """Open the checkpoint in a stage's process and make the stage, which reads its own tensors alone.

    weights: the fingerprint that the checkpoint must have. Raises CheckpointError if it has another one, and the errors
    of `Opening.open` and `staging.make_part`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first process has opened it, too, and said it all
        opened = opening.open()
    if opened.fingerprint != weights:
        raise CheckpointError(
            f"{opened.checkpoint.path} has other weights than the first process found: copy its files"
        )
    backend = select(opening.backend)
    return make_part(backend, opened.graph, cuts, stage, opened.tensors, opened.spec, opening.options)


def _actors(address: str, count: int, cpus: int) -> Callable[[str, Callable[[], Made]], Stage]:
    """Connect to a cluster, and return what starts one of `count` stages there. Raises what `clusters.join` does."""
    join(address, cpus=count * cpus)
    from mistral_portable.staging.actors import ActorStage  # imports Ray, for which `join` sets the environment

    return lambda name, make: ActorStage(make, cpus)


def _anywhere(path: str | Path) -> str | Path:
    """A path that is right in each folder; "tiny" and hub ids as they are."""
    return Path(path).absolute() if path != "tiny" and Path(path).exists() else path
