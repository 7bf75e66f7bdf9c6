"""Ray reads docs/deploy/*.yaml. KubeRay's definitions are in no package: those of 1.7.0 were tried by hand."""

import json
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

pytest.importorskip("ray", reason="Ray comes with the extra ray")

DEPLOY = Path(__file__).parents[2] / "docs/deploy"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def test_ray_up_takes_the_cluster() -> None:
    schema = json.loads(files("ray.autoscaler").joinpath("ray-schema.json").read_text())
    cluster = read("cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_serve_takes_the_service() -> None:
    """The function that it names makes an application of its arguments."""
    config = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])
    (application,) = import_module("ray.serve.schema").ServeDeploySchema.model_validate(config).applications
    module, name = application.import_path.split(":")
    made = getattr(import_module(module), name)(application.args)
    assert isinstance(made, import_module("ray.serve").Application)


@pytest.mark.parametrize(
    "wrong",
    [{"replica": {"least": 3}}, {"load": {"modle": "tiny"}}, {"settings": {"alais": "tiny"}}, {"replicas": {"min": 1}}],
)
def test_a_name_that_is_none_is_refused_before_replicas_start(wrong: dict[str, Any]) -> None:
    from mistral_portable.scaling.service import build

    with pytest.raises(TypeError):
        build({"load": {"model": "tiny"}, "settings": {"alias": "tiny"}, **wrong})


def test_pods_of_a_cluster_have_the_same_image_and_folders() -> None:
    for spec in (read("raycluster.yaml")["spec"], read("rayservice.yaml")["spec"]["rayClusterConfig"]):
        pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
        same = [(pod["volumes"], *((c["image"], c["volumeMounts"]) for c in pod["containers"])) for pod in pods]
        assert same[1:] == same[:-1]
