"""The container image, the compose example and the dashboard agree with the server they are for."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from bei.runtime.cli import parser
from bei.runtime.http.operations import OPERATIONS
from bei.runtime.model import load
from bei.runtime.process import SLACK_SECONDS
from bei.runtime.service import Service
from tests.runtime.serving import serving
from tests.runtime.tiny import write_bundle

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:bei|te|process)_[a-z_]+\b")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    return [
        (line.split(None, 1)[0], line.split(None, 1)[1])
        for line in lines
        if line and not line.startswith("#")
    ]


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())  # type: ignore[no-any-return]


def test_the_image_is_installed_by_the_script_that_ci_runs() -> None:
    runs = [rest for name, rest in instructions() if name == "RUN" and "install-server" in rest]
    extras = {shlex.split(run)[-1] for run in runs}
    assert all(run.startswith("scripts/install-server /opt/bei ") for run in runs)
    assert len(runs) == 3
    known = re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert {extra for group in extras for extra in group.split(",")} <= set(known)
    assert "scripts/install-server" in (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / "scripts/install-server", os.X_OK)


def test_the_image_takes_along_what_the_wheel_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    parts = {"adapters", "compiler", "kernels", "runtime", "src"}
    assert kept >= {
        *parts,
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "scripts/install-server",
    }
    assert all((ROOT / path).exists() for path in kept)


def test_the_image_starts_the_server_as_nobody_in_particular() -> None:
    found = instructions()
    users = [rest for name, rest in found if name == "USER"]
    assert users == ["10001", "0", "10001"]  # the Ray image installs something
    entry = json.loads(next(rest for name, rest in found if name == "ENTRYPOINT"))
    command = json.loads(next(rest for name, rest in found if name == "CMD"))
    assert entry[0] == "bei-serve"
    args = parser().parse_args([*entry[1:], *command])
    assert (args.host, args.port, args.bundle) == ("0.0.0.0", 8080, ["/bundle"])
    assert [rest for name, rest in found if name == "EXPOSE"] == ["8080"]
    assert [rest for name, rest in found if name == "STOPSIGNAL"] == ["SIGTERM"]


def test_the_image_checks_a_route_that_there_is() -> None:
    check, of_ray = [rest for name, rest in instructions() if name == "HEALTHCHECK"]
    assert of_ray == "NONE"  # Kubernetes asks the nodes of a Ray cluster
    path = re.search(r"http://127\.0\.0\.1:8080(/\w+)'", check)
    open_to_all = {path for operation in OPERATIONS if operation.tag == "health" for path in operation.paths}
    assert path is not None
    assert path[1] in open_to_all


def test_both_targets_exist() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert {"cpu", "gpu", "ray"} <= set(stages)
    copied = re.findall(r"--from=(\S+)", (DEPLOY / "Dockerfile").read_text())
    assert set(copied) <= set(stages)


def test_the_compose_example_fits_the_image_and_the_server() -> None:
    service = compose()["services"]["bei"]
    args = parser().parse_args(service["command"])
    assert service["build"]["dockerfile"] == "deploy/Dockerfile"
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert service["volumes"][0].split(":")[1] == args.bundle[0]
    assert str(args.api_key_file).removeprefix("/run/secrets/") in compose()["secrets"]
    assert int(service["stop_grace_period"].removesuffix("s")) > args.drain_seconds + SLACK_SECONDS
    assert service["ports"][0].startswith("127.0.0.1:")
    for secret in compose()["secrets"].values():
        assert f"deploy/{secret['file'][2:]}" in (ROOT / ".gitignore").read_text()


def test_the_compose_example_shows_the_dashboard() -> None:
    grafana = compose()["services"]["grafana"]
    (dashboard,) = [volume for volume in grafana["volumes"] if "dashboard" in volume]
    source, target, _ = dashboard.split(":")
    assert (DEPLOY / source).is_file()
    providers = yaml.safe_load(compose()["configs"]["dashboards"]["content"])["providers"]
    assert Path(target).parent == Path(providers[0]["options"]["path"])
    for content in compose()["configs"].values():
        assert yaml.safe_load(content["content"])


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())  # type: ignore[no-any-return]


def test_the_dashboard_asks_for_what_the_server_offers(dashboard: dict[str, Any], tmp_path: Path) -> None:
    with (
        load(write_bundle(tmp_path / "b")) as model,
        serving(Service(model, max_queue_tokens=1 << 20)) as url,
    ):
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "hello"}).status_code == 200
        exposed = httpx.get(f"{url}/metrics").text
    names = set(re.findall(r"^([a-z_]+)", exposed, re.MULTILINE))
    labels = {name: set(re.findall(rf"^{name}{{([^}}]*)}}", exposed, re.MULTILINE)) for name in names}
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(asked) > 20
    for expression in asked:
        found = METRIC.findall(expression)
        assert found, expression
        assert set(found) <= names, expression
    ours = {
        label for of_name in labels.values() for group in of_name for label in re.findall(r'(\w+)="', group)
    }
    wanted = {label for expression in asked for label in re.findall(r'(\w+)(?:=~|!=|=)"', expression)}
    grouped = {
        label.strip()
        for expression in asked
        for group in re.findall(r"by \(([^)]*)\)", expression)
        for label in group.split(",")
    }
    assert wanted | grouped <= ours | {"job", "instance", "le"}


def test_the_dashboards_panels_have_a_place_each(dashboard: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = {
        name
        for name in re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))
        if not name.startswith("__")
    }
    assert used <= variables
