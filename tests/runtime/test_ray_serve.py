"""The application on Ray Serve, on a local cluster of two nodes: updated, killed, drained and scaled under load."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from tests.runtime.fake_server import vector
from tests.runtime.processes import ENV, ROOT
from tests.runtime.ray_crowd import CLIENTS, Burst, crowd, ids
from tests.runtime.tiny import Array, expected, write_bundle

serve = pytest.importorskip("ray.serve", reason="needs ray (extra: ray)")
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray deprecates its own settings

MEMORY = 100 << 20
CPUS = 0.1
"""Of a replica; logical ones, so that many find room."""

TOOLS = Path(sys.executable).parent
BUNDLES: dict[str, Callable[[list[int]], Array]] = {"old": expected, "new": partial(expected, seed=1)}


def quiet_port() -> int:
    """A free one below those that systems give out by themselves and above Ray's workers': until Ray Serve takes it, while a
    cluster opens hundreds of connections, nobody else does."""
    for port in random.sample(range(20000, 30000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


class Cluster:
    """A head and one more node; the proxy is on the head."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.current = folder, ""
        self.paths = {
            "old": str(write_bundle(folder / "old")),
            "new": str(write_bundle(folder / "new", seed=1)),
            "damaged": str(write_bundle(folder / "damaged")),
        }
        (folder / "damaged" / "model.onnx").write_bytes(b"")
        self.port = quiet_port()
        self.url = f"http://127.0.0.1:{self.port}"
        head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
        self.nodes = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.second = self.nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
        ray.init(address=self.nodes.address, namespace="serve", log_to_driver=False, logging_level="ERROR")
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})

    def close(self) -> None:
        serve.shutdown()
        ray.shutdown()
        self.nodes.shutdown()

    def deploy(self, bundle: str) -> None:
        """The example's config with this bundle and two replicas, through `serve run`; ``current`` from then on."""
        config = yaml.safe_load((ROOT / "examples/ray_serve.yaml").read_text())
        config |= {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": self.port}}
        (application,) = config["applications"]
        application["args"]["bundles"][0]["path"] = self.paths[bundle]
        (deployment,) = application["deployments"]
        del deployment["autoscaling_config"]
        deployment |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": CPUS}}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        self.tool("serve", "run", "--non-blocking", "--address", self.nodes.address, str(file))
        self.current = bundle

    def tool(self, *command: str) -> None:
        done = subprocess.run(
            [str(TOOLS / command[0]), *command[1:]], env=ENV, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def replicas(name: str, state: str = "RUNNING") -> list[dict[str, Any]]:
    """What Ray knows of an application's replicas in a state."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    application = client.get_serve_details()["applications"].get(name, {})
    found = application.get("deployments", {}).get("bei", {}).get("replicas", [])
    return [replica for replica in found if replica["state"] == state]


def pids(name: str) -> set[int]:
    return {replica["pid"] for replica in replicas(name)}


def status(name: str) -> str:
    return str(serve.status().applications[name].status.value)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, serve.status()
        time.sleep(0.05)


def more(seen: Counter[str], name: str, count: int = 50) -> None:
    """Wait for so many more answers of a bundle."""
    wanted = seen[name] + count
    until(lambda: seen[name] >= wanted)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(tmp_path_factory.mktemp("ray_serve"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Cluster:
    """With two replicas of the old bundle."""
    cluster.deploy("old")
    until(lambda: status("bei") == "RUNNING")
    return cluster


def test_the_example_serves_every_contract(served: Cluster) -> None:
    with httpx.Client(base_url=served.url) as http:
        answer = http.post(
            "/v1/embeddings", json={"input": ["hello", "a b"]}, headers={"x-request-id": "mine"}
        )
        assert answer.json()["model"] == "minilm"
        np.testing.assert_allclose(
            [item["embedding"] for item in answer.json()["data"]],
            [expected(ids("hello")), expected(ids("a b"))],
            atol=1e-5,
        )
        assert answer.headers.get_list("x-request-id") == ["mine"]
        np.testing.assert_allclose(
            http.post("/embed", json={"inputs": "hello"}).json(), [expected(ids("hello"))], atol=1e-5
        )
        assert (
            http.post("/v1/embeddings", json={"input": []}).json()["error"]["type"] == "invalid_request_error"
        )
        assert http.post("/embed", json={"inputs": 5}).json()["error_type"] == "Validation"
        for path in ("/health", "/v1/health/ready", "/v1/models", "/info", "/metrics", "/openapi.json", "/"):
            assert http.get(path).status_code == 200, path
        late = http.post("/embed", json={"inputs": "hello"}, headers={"request-timeout-ms": "0"})
        assert late.status_code == 408


def test_a_rolling_update_fails_no_request(served: Cluster) -> None:
    before, old, new = pids("bei"), served.current, "new" if served.current == "old" else "old"
    with crowd(served.port, BUNDLES) as seen:
        more(seen, old)
        served.deploy(new)
        until(lambda: len(pids("bei") - before) == 2 and not pids("bei") & before)
        until(lambda: status("bei") == "RUNNING")
        more(seen, new, CLIENTS)  # the last that the old ones had accepted are answered
        from_old = seen[old]
        more(seen, new)
    assert set(seen) == {old, new}, seen
    assert seen[old] == from_old


def test_a_node_is_drained_as_kubernetes_would(served: Cluster) -> None:
    """With the command that deploy/kubernetes/rayservice.yaml runs before a pod ends."""
    node = served.second.node_id
    assert {replica["node_id"] for replica in replicas("bei")} == {node, served.nodes.head_node.node_id}
    with crowd(served.port, BUNDLES) as seen:
        more(seen, served.current)
        served.tool(
            "ray", "drain-node", "--address", served.nodes.address, "--node-id", node,
            "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=the pod is being deleted",
            "--deadline-remaining-seconds=85",
        )  # fmt: skip
        until(lambda: [replica["node_id"] == node for replica in replicas("bei")] == [False, False])
        until(lambda: not replicas("bei", "STOPPING"))
        served.nodes.remove_node(served.second)
        more(seen, served.current)
    assert set(seen) == {served.current}, seen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_replica_ends_under_load(served: Cluster, number: signal.Signals) -> None:
    """Told to, it finishes what it has accepted; killed, it takes along what it was working on: one request a client."""
    before = pids("bei")
    with crowd(served.port, BUNDLES) as seen:
        more(seen, served.current)
        os.kill(min(before), number)
        until(lambda: len(pids("bei")) == 2 and pids("bei") != before)
        more(seen, served.current)
    assert set(seen) <= {served.current, "500"}, seen
    assert seen["500"] <= (CLIENTS if number == signal.SIGKILL else 0)


FAKE = {"num_replicas": 1, "ray_actor_options": {"num_cpus": CPUS}}
KEYS = {"num_cpus": CPUS, "runtime_env": {"env_vars": {"THE_KEYS": "sesame"}}}


def run_fake(cluster: Cluster, name: str, options: dict[str, Any], **args: Any) -> str:
    """Serve the fake under its name as prefix; its URL."""
    from tests.runtime.ray_fake import build

    args = {"bundles": cluster.paths["old"], **args}
    serve.run(build(args, **options), name=name, route_prefix=f"/{name}")
    return f"{cluster.url}/{name}"


def open_requests(url: str) -> int:
    return int(httpx.get(f"{url}/stats").json()["models"][0]["open_requests"])


def test_what_waits_is_bounded_in_tokens_and_accepted_requests_are_finished(cluster: Cluster) -> None:
    url = run_fake(cluster, "bounded", FAKE, max_queue_tokens=60)
    came = Burst(cluster.port, "/bounded", "world", 60).end()
    assert {answer.status for answer in came} == {200, 429}
    refused = next(answer for answer in came if answer.status == 429)
    assert int(refused.headers["retry-after-ms"]) > 0
    assert json.loads(refused.body)["error"]["type"] == "rate_limit_error"
    slow = " ".join(["world"] * 10)
    last = Burst(cluster.port, "/bounded", slow, 3)
    until(lambda: open_requests(url) == 3)
    serve.delete("bounded", _blocking=False)
    until(lambda: httpx.get(f"{url}/health").status_code != 200)
    accepted = last.end()
    assert len(accepted) == 3
    for answer in accepted:
        got = json.loads(answer.body)["data"][0]["embedding"]
        np.testing.assert_allclose(got, vector(ids(slow)), atol=1e-6)


def test_a_replica_without_an_engine_is_replaced(cluster: Cluster) -> None:
    options = FAKE | {"ray_actor_options": KEYS, "health_check_period_s": 0.2}
    url = run_fake(cluster, "mortal", options, api_key_variable="THE_KEYS")
    before = pids("mortal")

    def ask(text: str) -> int:
        body, headers = {"input": text}, {"authorization": "Bearer sesame"}
        return httpx.post(f"{url}/v1/embeddings", json=body, headers=headers, timeout=60).status_code

    assert httpx.post(f"{url}/v1/embeddings", json={"input": "hello"}).status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200
    assert (ask("hello"), ask("query")) == (200, 503)
    until(lambda: bool(pids("mortal")) and not pids("mortal") & before)
    assert ask("hello") == 200
    serve.delete("mortal")


def test_replicas_follow_the_tokens_that_wait(cluster: Cluster) -> None:
    policy = {
        "policy_function": "bei.runtime.ray_autoscaling:QueuedTokens",
        "policy_kwargs": {"target_tokens": 20},
    }
    scaling = {
        "min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0, "downscale_delay_s": 0, "metrics_interval_s": 0.2,
        "look_back_period_s": 1.0, "policy": policy,
    }  # fmt: skip
    run_fake(cluster, "scaled", {"autoscaling_config": scaling, "ray_actor_options": {"num_cpus": CPUS}})
    assert len(pids("scaled")) == 1
    clients = Burst(cluster.port, "/scaled", "world", 40, again=True)
    try:
        until(lambda: len(pids("scaled")) == 2)
    finally:
        answers = clients.end()
    assert {answer.status for answer in answers} == {200}
    until(lambda: len(pids("scaled")) == 1)
    serve.delete("scaled")


def test_rays_exporter_knows_every_replica(served: Cluster) -> None:
    ports = [node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]]
    wanted = {replica["replica_id"] for replica in replicas("bei")}
    with crowd(served.port, BUNDLES) as seen:
        until(lambda: exported(ports, "ray_bei_ready") >= wanted)
        until(lambda: exported(ports, "ray_bei_tokens_total") >= wanted)
    assert set(seen) == {served.current}


def exported(ports: Iterable[int], metric: str) -> set[str]:
    """The replicas of which Ray's exporters have a metric above 0, for the model by its name."""
    texts = (httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports)
    lines = re.findall(rf"^{metric}{{(.*)}} (\S+)$", "\n".join(texts), re.MULTILINE)
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', of)) for of, value in lines if float(value) > 0]
    return {found["replica"] for found in labels if found["model"] == "minilm"}


def test_a_bundle_that_cannot_be_served_changes_nothing(served: Cluster) -> None:
    """The last test here: the application waits for a better bundle."""
    before, good = pids("bei"), served.current
    with crowd(served.port, BUNDLES) as seen:
        served.deploy("damaged")
        until(lambda: status("bei") == "DEPLOY_FAILED")
        more(seen, good)
    assert set(seen) == {good}
    assert pids("bei") == before
    (deployment,) = serve.status().applications["bei"].deployments.values()
    assert "model.onnx has 0 bytes" in deployment.message
