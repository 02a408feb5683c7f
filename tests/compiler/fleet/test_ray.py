"""The same matrix as tasks on a local Ray cluster, one of whose nodes has a GPU by name."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bei.compiler.fleet.ray_tasks import ACCELERATORS, why_nowhere
from bei.compiler.fleet.work import Work
from bei.compiler.parity.cli import main as parity
from tests.compiler.fleet.test_fleet import BASE, CPU, LARGE, SMALL, WIDE, Zoo, builders, until, write_zoo

ray = pytest.importorskip("ray", reason="needs ray (extra: ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray deprecates its own settings

OBJECTS = 100 << 20
MEMORY = 8 << 30


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A head that has no memory for builds, and two nodes that have, one CPU each."""
    node = {"num_cpus": 1, "object_store_memory": OBJECTS}
    head = {**node, "memory": 1, "include_dashboard": False}
    found = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    found.add_node(**node, memory=MEMORY, num_gpus=1, labels={"ray.io/accelerator-type": "H100"})
    found.add_node(**node, memory=MEMORY)
    try:
        yield found.address
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def zoo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Zoo:
    return Zoo(tmp_path, capsys)


def test_as_on_one_machine(zoo: Zoo, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.file = write_zoo(zoo.file, SMALL, BASE, LARGE, mpnet=BASE)
    _, here = zoo.run(targets=[CPU])
    zoo.out = zoo.root / "there"
    code, there = zoo.run("--ray", address, targets=[CPU], workers=None)
    assert code == 2
    assert [_facts(cell) for cell in there] == [_facts(cell) for cell in here]
    assert [cell["outcome"] for cell in there] == ["built", "failed", "built"]
    _, again = zoo.run("--ray", address, targets=[CPU], workers=None)
    assert [cell["outcome"] for cell in again] == ["kept", "failed", "kept"]


def _facts(cell: dict[str, Any]) -> dict[str, Any]:
    """A cell without what differs between two runs; a bundle's digest has the place of a stand-in in it."""
    return {name: cell[name] for name in cell if name not in ("seconds", "node", "digest")}


def test_what_needs_a_gpu_goes_where_one_is(zoo: Zoo, address: str) -> None:
    """TensorRT is not there, and only the node with the GPU can say so."""
    zoo.file = write_zoo(zoo.file, SMALL)
    code, cells = zoo.run("--ray", address, targets=[CPU, "tensorrt-sm90", "tensorrt-sm80"], workers=None)
    assert code == 2
    assert [cell["outcome"] for cell in cells] == ["built", "failed", "failed"]
    assert "tensorrt is not installed" in cells[1]["reason"]
    assert cells[2]["reason"].startswith("no node of the cluster has a GPU of SM80")


@pytest.mark.parametrize("what", ["process", "node"])
def test_what_dies_is_tried_again(what: str, zoo: Zoo, address: str) -> None:
    zoo.file = write_zoo(zoo.file, SMALL)
    zoo.write(SMALL, config=WIDE)
    killed: list[int] = []

    def kill() -> None:
        until(lambda: any(builders(zoo.out)))
        builder = next(builders(zoo.out))
        killed.append(builder if what == "process" else _parent(builder))
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    code, cells = zoo.run("--ray", address, targets=["onnxruntime-cuda"], workers=None)
    thread.join()
    assert killed
    assert (code, [cell["outcome"] for cell in cells]) == (0, ["built"])


def _parent(process: int) -> int:
    """Of a worker: its node's daemon."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_no_cluster(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of(zoo, "127.0.0.1:1") == 2
    assert "no cluster answers there" in capsys.readouterr().err


def main_of(zoo: Zoo, address: str) -> int:
    from bei.compiler.cli import main

    return main(zoo.arguments("--ray", address, targets=[CPU], workers=None))


def test_the_parity_matrix(zoo: Zoo, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    zoo.file = write_zoo(zoo.file, SMALL, BASE, mpnet=BASE)
    tables = []
    for name, flags in (("here", []), ("there", ["--ray", address]), ("pool", ["--workers", "2"])):
        given = ["--zoo", str(zoo.file), "--weights", str(zoo.weights), "--json", str(zoo.root / name)]
        assert parity([*given, *flags]) == 1
        table = capsys.readouterr().out
        rows = json.loads((zoo.root / name).read_text())["rows"]
        tables.append([{key: row[key] for key in row if key != "seconds"} for row in rows])
        assert SMALL in table
    assert tables[0] == tables[1] == tables[2]


def node(**facts: Any) -> dict[str, Any]:
    return {"Resources": {"CPU": 1.0, "memory": 10.0, **facts}, "Labels": {}}


def test_what_no_node_can_do_is_said_at_once() -> None:
    h100 = {**node(GPU=1.0, memory=5.0), "Labels": {"ray.io/accelerator-type": "H100"}}
    nodes = [node(), h100]
    for work, reason in (
        (Work(request=b"", memory=10), None),
        (
            Work(request=b"", memory=11),
            "needs about 11 bytes of memory, and the largest node that could do it has 10",
        ),
        (Work(request=b"", memory=5, sm=90), None),
        (Work(request=b"", memory=6, sm=90), "the largest node that could do it has 5"),
        (
            Work(request=b"", memory=1, sm=89),
            "no node of the cluster has a GPU of SM89 (ray.io/accelerator-type: L4",
        ),
        (Work(request=b"", memory=1, sm=121), "no node of the cluster has a GPU of SM121"),
    ):
        found = why_nowhere(work, nodes)
        assert (found is None) == (reason is None)
        assert (reason or "") in (found or "")


def test_every_name_is_of_one_kind() -> None:
    names = [name for names in ACCELERATORS.values() for name in names]
    assert len(set(names)) == len(names)
