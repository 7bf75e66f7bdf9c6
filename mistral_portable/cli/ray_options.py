"""RayOptions: on which cluster, and in how many replicas, for the commands that run on Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mistral_portable.cli.model_options import ModelOptions
from mistral_portable.cli.options import cache_bytes_of
from mistral_portable.cli.ranges import with_range
from mistral_portable.errors import InputError

__all__ = ["RayOptions", "ray_option"]


def ray_option(help: str, metavar: str = "N", **settings: Any) -> Any:
    """An option of the panel "Many machines"."""
    return typer.Option(
        metavar=metavar, rich_help_panel="Many machines", show_default=False, **with_range(help, **settings)
    )


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options as they stand on the command line (`grouped`)."""

    ray: Annotated[
        str | None,
        ray_option(
            "Run on this Ray cluster: HOST:PORT of its head, auto (that of this machine), local (start Ray here).",
            "ADDRESS",
        ),
    ] = None
    replicas: Annotated[int | None, ray_option("Models that share the requests; 1 by default.", low=1)] = None
    threads_per_replica: Annotated[int | None, ray_option("CPU threads of each; 1 by default.", low=1)] = None

    def refuse(self) -> None:
        """Raise InputError if there are options that need --ray, which is not given."""
        if self.replicas is not None or self.threads_per_replica is not None:
            raise InputError("--replicas and --threads-per-replica need --ray")

    def arguments(self, model: str, options: ModelOptions, cache_ram: str | None) -> Mapping[str, Any]:
        """Arguments of `mistral_portable.load` in a replica; a path here is made absolute.

        Raises BackendError without Ray, InputError if the address is none or --threads is given.
        """
        from mistral_portable.clusters import check_address

        assert self.ray is not None
        check_address(self.ray)
        if options.threads is not None:
            raise InputError("--threads does not go with --ray: give --threads-per-replica")
        place = str(Path(model).absolute()) if Path(model).exists() else model
        return {"model": place, **options.arguments, "cache_bytes": cache_bytes_of(cache_ram)}
