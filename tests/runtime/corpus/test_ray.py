"""The same job on a local Ray cluster of two nodes, whose actors and nodes die in the middle of it."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.runtime.corpus.jobs import failures, read, run, texts, write_jsonl
from tests.runtime.corpus.test_resume import contents

from bei.runtime.corpus import ray_data
from bei.runtime.corpus.job import Job
from bei.runtime.corpus.run import Machine
from bei.runtime.corpus.shards import Shard
from bei.runtime.corpus.storage import Place
from bei.runtime.corpus.worker import Advance, Done

ray = pytest.importorskip("ray", reason="needs ray (extra: ray)")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray deprecates its own settings

SHARDS, ROWS = 80, 100
MEMORY = 100 << 20


@pytest.fixture(scope="module")
def nodes() -> Iterator[object]:
    """A head and one more node, one CPU each."""
    found = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False},
    )
    found.add_node(num_cpus=1, object_store_memory=MEMORY)
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


class Deadly:
    """A machine that kills the actor of the first shard that is done, and some shards later a node."""

    def __init__(self, machine: Machine, nodes: object) -> None:
        self.probe, self._machine, self._nodes = machine.probe, machine, nodes
        self.killed = 0
        self.left_when_the_node_died = 0
        self.done: list[Done] = []

    @property
    def tokens(self) -> int | None:
        return self._machine.tokens

    def run(self, job: Job, out: Place, shards: Sequence[Shard], advance: Advance) -> Iterator[Done]:
        for done in self._machine.run(job, out, shards, advance):
            self.done.append(done)
            if len(self.done) == 1:
                self.killed = int(done.worker.rpartition(":")[2])
                os.kill(self.killed, signal.SIGKILL)
            if len(self.done) == 10:
                self.left_when_the_node_died = len(shards) - len(list(Path(out.path).glob("part-*")))
                (node,) = self._nodes.worker_nodes  # type: ignore[attr-defined]
                self._nodes.remove_node(node, allow_graceful=False)  # type: ignore[attr-defined]
            yield done


def test_what_an_actor_meets_is_one_message(
    nodes: object,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}] * 10)
    address = nodes.address  # type: ignore[attr-defined]
    arguments = (bundle, corpus, "--ray", address)
    code, _, error = run(capsys, *arguments, "--out", "memory://only/here")
    assert (code, "holds no job as seen from" in error) == (2, True)


def test_actors_and_nodes_die(
    nodes: object,
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[dict[str, object]] = [{"text": text} for text in texts(SHARDS * ROWS)]
    rows[::70] = [{"text": None}] * len(rows[::70])
    corpus = write_jsonl(tmp_path / "a.jsonl", rows)
    arguments = (bundle, corpus, "--shard-rows", ROWS, "--threads", 1, "--dtype", "int8")
    assert run(capsys, *arguments, "--out", tmp_path / "here")[0] == 1
    machines: list[Deadly] = []
    real = ray_data.cluster

    @contextmanager
    def deadly(*given: object) -> Iterator[Machine]:
        with real(*given) as machine:  # type: ignore[arg-type]
            machines.append(Deadly(machine, nodes))
            yield machines[0]

    monkeypatch.setattr(ray_data, "cluster", deadly)
    address = nodes.address  # type: ignore[attr-defined]
    out = tmp_path / "there"
    code, _, error = run(capsys, *arguments, "--out", out, "--ray", address, "--actors", 2)
    assert code == 1, error
    (machine,) = machines
    assert machine.left_when_the_node_died > 0, "the job was done before the node died"
    assert sorted(done.shard for done in machine.done) == list(range(SHARDS))
    assert {done.worker for done in machine.done[2:]} - {machine.done[0].worker}
    assert contents(out) == contents(tmp_path / "here")
    assert len(read(out)) + len(failures(out)) == SHARDS * ROWS
