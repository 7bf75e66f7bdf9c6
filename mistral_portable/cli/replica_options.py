"""ReplicaOptions: in how many replicas a command runs on Ray, for `serve` and `batch`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import cache_bytes_of, ray_option
from mistral_portable.errors import InputError

__all__ = ["ReplicaOptions"]


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """Options as they stand on the command line (`grouped`)."""

    replicas: Annotated[int | None, ray_option("With --ray: models that share the requests; 1 by default.", low=1)] = (
        None
    )
    threads_per_replica: Annotated[int | None, ray_option("With --ray: CPU threads of each; 1 by default.", low=1)] = (
        None
    )

    def cluster(self, options: ModelOptions) -> str | None:
        """The address of the cluster that replicas run on. None: there are none, also where --ray runs stages.

        Raises BackendError without Ray, InputError if the address is none, or other options do not go with it.
        """
        if options.ray is None or options.stages is not None:
            if self.replicas is not None or self.threads_per_replica is not None:
                raise InputError("--replicas and --threads-per-replica need --ray, and do not go with --stages")
            return None
        from mistral_portable.clusters import check_address

        check_address(options.ray)
        if (options.tensor_parallel or 1) > 1:
            raise InputError("--tensor-parallel does not go with --ray: a replica is one process")
        if options.threads is not None:
            raise InputError("--threads does not go with --ray: give --threads-per-replica")
        return options.ray

    def arguments(self, model: str, options: ModelOptions, cache_ram: str | None) -> Mapping[str, Any]:
        """Arguments of `mistral_portable.load` in a replica; a path here is made absolute."""
        place = str(Path(model).absolute()) if Path(model).exists() else model
        return {**options.arguments, "model": place, "ray": None, "cache_bytes": cache_bytes_of(cache_ram)}
