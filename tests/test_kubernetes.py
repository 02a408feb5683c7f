"""The Kubernetes examples: valid by the published schemas, and in agreement with the image, the server and Ray.

Kubernetes' schemas come in a package. KubeRay's and the Prometheus operator's do not: of a RayService the pods are
validated by Kubernetes' schema, the Serve config by Ray's own, and what lies between by the structs below.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml

from bei.runtime.cli import parser
from bei.runtime.http.auth import HEALTH_PATHS
from bei.runtime.metrics import GAUGES
from bei.runtime.process import SLACK_SECONDS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
VERSION = "1.37"
USER = 10001

Manifest = dict[str, Any]


class Group(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a RayCluster says of its head; ``rayStartParams`` are options of `ray start`."""

    rayStartParams: dict[str, str]  # noqa: N815
    template: Manifest


class WorkerGroup(Group, kw_only=True, forbid_unknown_fields=True):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class AutoscalerOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    idleTimeoutSeconds: int  # noqa: N815
    upscalingMode: str  # noqa: N815


class RayCluster(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    headGroupSpec: Group  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815


class RayServiceSpec(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: RayCluster  # noqa: N815


def manifests(name: str) -> dict[str, Manifest]:
    """By kind."""
    found = list(yaml.safe_load_all((FOLDER / name).read_text()))
    assert len({manifest["kind"] for manifest in found}) == len(found)
    return {manifest["kind"]: manifest for manifest in found}


@pytest.fixture(scope="module")
def server() -> dict[str, Manifest]:
    return manifests("server.yaml")


@pytest.fixture(scope="module")
def pod(server: dict[str, Manifest]) -> Manifest:
    spec: Manifest = server["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def ray_service() -> RayServiceSpec:
    manifest = manifests("rayservice.yaml")["RayService"]
    assert manifest["apiVersion"] == "ray.io/v1"
    return msgspec.convert(manifest["spec"], RayServiceSpec)


def validate(manifest: Manifest) -> None:
    """Unknown fields are errors too."""
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_manifests_are_valid(server: dict[str, Manifest]) -> None:
    kinds = {
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "PersistentVolumeClaim",
    }
    assert set(server) == kinds
    for manifest in server.values():
        validate(manifest)
    validate(manifests("metrics.yaml")["ConfigMap"])


@pytest.mark.parametrize(
    "change", [("replicas", "three"), ("paused", 1), ("revisionHistory", 3)], ids=lambda pair: pair[0]
)
def test_the_validation_can_fail(server: dict[str, Manifest], change: tuple[str, Any]) -> None:
    wrong = {**server["Deployment"], "spec": {**server["Deployment"]["spec"], change[0]: change[1]}}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(wrong)


def test_the_parts_find_each_other(server: dict[str, Manifest], pod: Manifest) -> None:
    deployment = server["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [server[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget")]
    selectors += [spread["labelSelector"] for spread in pod["topologySpreadConstraints"]]
    selectors += [manifests("metrics.yaml")["PodMonitor"]["spec"]["selector"]]
    assert all(selector["matchLabels"].items() <= labels.items() for selector in selectors)
    assert server["Service"]["spec"]["selector"].items() <= labels.items()
    scaler = server["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"], "kind": "Deployment", "name": deployment["metadata"]["name"],
    }  # fmt: skip
    (container,) = pod["containers"]
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in server["Service"]["spec"]["ports"]} <= ports
    (endpoint,) = manifests("metrics.yaml")["PodMonitor"]["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in ports
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if len(volume) == 2 and "persistentVolumeClaim" in volume}  # fmt: skip
    assert claims == {server["PersistentVolumeClaim"]["metadata"]["name"]}
    check_mounts(pod)


def check_mounts(spec: Manifest) -> None:
    """Every mount has its volume, and every volume is mounted."""
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_server_takes_its_arguments(pod: Manifest) -> None:
    (container,) = pod["containers"]
    variables = {variable["name"]: "2" for variable in container["env"]}
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], text) for text in container["args"]
    ]
    args = parser().parse_args(arguments)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (*args.bundle, str(args.api_key_file)):
        assert any(path.startswith(f"{mount}/") for mount in mounts)
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert '"--port", "8080"' in image
    assert [port["containerPort"] for port in container["ports"]] == [8080]
    assert f"AS {container['image'].partition(':')[2]}\n" in image


def test_requests_are_over_before_a_pod_is(pod: Manifest) -> None:
    (container,) = pod["containers"]
    args = parser().parse_args(["/b", "--drain-seconds", container["args"][3]])
    assert container["args"][2] == "--drain-seconds"
    leaving = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = container["readinessProbe"]
    assert leaving >= probe["periodSeconds"] * probe["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] >= leaving + args.drain_seconds + SLACK_SECONDS


def test_probes_ask_open_routes(pod: Manifest) -> None:
    (container,) = pod["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {probe["path"] for probe in probes.values()} <= HEALTH_PATHS
    assert probes["readiness"]["path"] == probes["startup"]["path"] == "/v1/health/ready"
    assert probes["liveness"]["path"] == "/v1/health/live"
    assert {probe["port"] for probe in probes.values()} == {"http"}


def test_an_update_never_leaves_fewer_servers(server: dict[str, Manifest]) -> None:
    assert server["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert "replicas" not in server["Deployment"]["spec"]
    assert server["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > 1


def test_the_autoscaler_reads_a_metric_that_there_is(server: dict[str, Manifest]) -> None:
    (metric,) = server["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in GAUGES
    (rule,) = yaml.safe_load(manifests("metrics.yaml")["ConfigMap"]["data"]["config.yaml"])["rules"]
    assert rule["seriesQuery"].startswith(f"{name}{{")


def test_nothing_runs_as_root(pod: Manifest, ray_service: RayServiceSpec) -> None:
    cluster = ray_service.rayClusterConfig
    groups = [cluster.headGroupSpec, *cluster.workerGroupSpecs]
    for spec in (pod, *(group.template["spec"] for group in groups)):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["runAsUser"] == USER
        for container in spec["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["limits"]["memory"]
    assert f"USER {USER}" in (ROOT / "deploy/Dockerfile").read_text()


def test_the_ray_service_is_valid(ray_service: RayServiceSpec) -> None:
    cluster = ray_service.rayClusterConfig
    for group in (cluster.headGroupSpec, *cluster.workerGroupSpecs):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "ray"}}
        validate({**template, "template": group.template})
        check_mounts(group.template["spec"])
    assert cluster.autoscalerOptions.upscalingMode in ("Default", "Aggressive", "Conservative")
    (workers,) = cluster.workerGroupSpecs
    assert workers.minReplicas <= workers.replicas <= workers.maxReplicas
    assert f'"ray[data,serve]=={cluster.rayVersion}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_the_serve_configs(ray_service: RayServiceSpec) -> None:
    """That of the RayService is the example's, but for what a cluster needs."""
    schema = pytest.importorskip("ray.serve.schema", reason="needs ray (extra: ray)").ServeDeploySchema
    example = yaml.safe_load((ROOT / "examples/ray_serve.yaml").read_text())
    cluster = yaml.safe_load(ray_service.serveConfigV2)
    for found in (example, cluster):
        schema.model_validate(found)
    for application in (*example["applications"], *cluster["applications"]):
        del application["args"]
    assert cluster["applications"] == example["applications"]


def test_replicas_of_the_ray_service_fit_its_pods(ray_service: RayServiceSpec) -> None:
    from bei.runtime.ray_arguments import read_arguments

    (application,) = yaml.safe_load(ray_service.serveConfigV2)["applications"]
    args = read_arguments(application["args"])
    (workers,) = ray_service.rayClusterConfig.workerGroupSpecs
    spec = workers.template["spec"]
    (container,) = spec["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (*args.served(), str(args.api_key_file)):
        assert any(path.startswith(f"{mount}/") for mount in mounts)
    (deployment,) = application["deployments"]
    assert deployment["ray_actor_options"]["num_cpus"] <= int(container["resources"]["limits"]["cpu"])
    assert deployment["autoscaling_config"]["max_replicas"] <= workers.maxReplicas
    waited = int(container["lifecycle"]["preStop"]["exec"]["command"][-1].rpartition("sleep ")[2])
    assert waited > args.drain_seconds + SLACK_SECONDS
    assert spec["terminationGracePeriodSeconds"] > waited
