"""Work in processes of this machine: bounded, isolated, and gone when nobody wants it any more."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bei.compiler.fleet import pool
from bei.compiler.fleet.pool import Pool
from bei.compiler.fleet.work import Answer, Work

MODULE = "tests.compiler.fleet.echo"


@pytest.fixture(autouse=True)
def _echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MODULE", MODULE)


def work(do: str, memory: int = 1, *, gpu: bool = False, **more: Any) -> Work:
    return Work(request=json.dumps({"do": do, **more}).encode(), memory=memory, gpu=gpu)


def results(machine: Pool, *works: Work) -> dict[bytes, Answer]:
    return {work.request: answer for work, answer in machine.run(works)}


def said(answer: Answer) -> Any:
    assert answer.lost is None
    return msgspec.json.decode(answer.result)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_one_that_dies_does_not_end_the_rest() -> None:
    asked = [work("say", what="a"), work("die"), work("exit"), work("raise"), work("say", what="b")]
    found = results(Pool(workers=2, memory=None, fresh=True), *asked)
    assert [said(found[asked[i].request])[0] for i in (0, 4)] == ["a", "b"]
    assert found[asked[1].request].lost == "its process was ended by SIGKILL (out of memory?): std::bad_alloc"
    assert "its process ended with code 7" in (found[asked[2].request].lost or "")
    assert found[asked[3].request].lost == "ValueError: it went wrong"


def test_fresh_processes_and_used_ones() -> None:
    asked = [work("say", what=i) for i in range(3)]
    for fresh, count in ((True, 3), (False, 1)):
        found = results(Pool(workers=1, memory=None, fresh=fresh), *asked)
        assert len({said(answer)[1] for answer in found.values()}) == count


def test_after_a_death_the_next_process_goes_on() -> None:
    asked = [work("say", what=1), work("die"), work("say", what=2)]
    found = results(Pool(workers=1, memory=None, fresh=False), *asked)
    assert said(found[asked[0].request])[1] != said(found[asked[2].request])[1]


@pytest.mark.parametrize(
    ("machine", "gpu", "together"),
    [
        (Pool(workers=2, memory=100, fresh=True), False, True),
        (Pool(workers=1, memory=100, fresh=True), False, False),
        (Pool(workers=2, memory=99, fresh=True), False, False),
        (Pool(workers=2, memory=40, fresh=True), False, False),
        (Pool(workers=2, memory=100, fresh=True), True, False),
    ],
    ids=["room for two", "one worker", "memory for one", "memory for none", "one GPU"],
)
def test_no_more_at_a_time_than_there_is_room_for(
    machine: Pool, gpu: bool, together: bool, tmp_path: Path
) -> None:
    notes, end = [tmp_path / "1", tmp_path / "2"], tmp_path / "end"
    asked = [
        work("note", 50, gpu=gpu, file=str(notes[i]), other=str(notes[0]), until=str(end)) for i in (0, 1)
    ]
    found: dict[bytes, Answer] = {}
    thread = threading.Thread(target=lambda: found.update(results(machine, *asked)))
    thread.start()
    until(notes[together].exists)
    end.touch()
    thread.join(60)
    assert (said(found[asked[1].request]) != "done") == together


def test_work_is_planned_while_other_work_runs(tmp_path: Path) -> None:
    """Units come from a generator, which is asked for the next one only when there is a place for it."""
    asked: list[int] = []

    def works() -> Iterator[Work]:
        for i in range(4):
            asked.append(i)
            yield work("say", what=i)

    machine = Pool(workers=1, memory=None, fresh=False)
    for count, _ in enumerate(machine.run(works()), 1):
        assert len(asked) <= count + 1


def test_whoever_stops_listening_stops_the_work(tmp_path: Path) -> None:
    note = tmp_path / "note"
    asked = [
        work("note", file=str(note), other=str(note), until=str(tmp_path / "never")),
        work("say", what=1),
    ]
    running = Pool(workers=2, memory=None, fresh=True).run(asked)
    next(running)
    until(note.exists)
    running.close()  # type: ignore[attr-defined]
    assert note.read_text() == "interrupted"


def test_the_work_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    """Killed, it cannot tell anybody."""
    note = tmp_path / "note"
    request = work("note", file=str(note), other=str(note), until=str(tmp_path / "never")).request
    code = (
        "from bei.compiler.fleet import pool\nfrom bei.compiler.fleet.work import Work\n"
        f"pool.MODULE = {MODULE!r}\n"
        f"list(pool.Pool(workers=1, memory=None, fresh=True).run([Work(request={request!r}, memory=1)]))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        until(note.exists)
        process.send_signal(signal.SIGKILL)
    until(lambda: note.read_text() == "interrupted")
