"""A job that was stopped, at whatever moment, ends with the same files as one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.runtime.corpus.jobs import failures, read, run, texts, write_jsonl
from tests.runtime.tiny import write_bundle

PROGRAM = [sys.executable, "-m", "bei.runtime.corpus.cli"]
KILLS = 4
SHARDS = 240


def contents(out: Path) -> dict[str, bytes]:
    """Every file a user sees."""
    return {path.name: path.read_bytes() for path in out.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = [{"text": text} for text in texts(SHARDS * 10)]
    rows[::50] = [{"text": None}] * len(rows[::50])
    return write_jsonl(tmp_path / "a.jsonl", rows)


def killed(command: list[str], out: Path, parts: int) -> int:
    """Run the command and kill -9 it once so many parts are there; how many were, when it was dead."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(out.glob("part-*"))) < parts:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    return len(list(out.glob("part-*")))


def test_killed_at_random_moments(
    bundle: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(bundle), str(corpus), "--shard-rows", "10", "--threads", "1"]
    assert run(capsys, *arguments, "--out", tmp_path / "whole")[0] == 1
    out = tmp_path / "o"
    rng = random.Random(os.getpid())
    there = 0
    for _ in range(KILLS):
        there = killed([*PROGRAM, *arguments, "--out", str(out)], out, there + rng.randint(1, 30))
    code, said, _ = run(capsys, *arguments, "--out", out, "--json")
    summary = json.loads(said)
    assert (code, summary["done_before"]) == (1, there * 10)
    assert contents(out) == contents(tmp_path / "whole")
    assert not list(out.glob("*.partial-*")) and not list(out.glob(".*.partial-*"))
    assert len(read(out)) + len(failures(out)) == SHARDS * 10


def test_an_interrupted_job_says_how_to_go_on(bundle: Path, corpus: Path, tmp_path: Path) -> None:
    command = [*PROGRAM, str(bundle), str(corpus), "--shard-rows", "10", "--out", str(tmp_path / "o")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list((tmp_path / "o").glob("part-*")):
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (
        130,
        "bei-embed: interrupted; run the same command again to go on\n",
    )


def test_another_job_in_the_same_folder_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (write_jsonl(tmp_path / f"{n}.jsonl", [{"text": "a", "b": "c"}] * 20) for n in "12")
    out = tmp_path / "o"
    whole = (bundle, one, two, "--out", out)
    assert run(capsys, *whole)[0] == 0
    before = contents(out)

    def refused(*arguments: object) -> str:
        code, _, error = run(capsys, *arguments)
        assert (code, contents(out)) == (2, before)
        assert "Give another --out, or remove that folder to start anew." in error
        return error

    assert "dtype: it is float32, now float16" in refused(*whole, "--dtype", "float16")
    assert "columns: it is text, now b" in refused(*whole, "--column", "b")
    assert "prompt_name: it is None, now query" in refused(*whole, "--prompt-name", "query")
    assert f"{two}: is no longer among the inputs" in refused(bundle, one, "--out", out)
    assert "they come in another order" in refused(bundle, two, one, "--out", out)
    other = write_bundle(tmp_path / "b2", license="mit")
    assert "bundle: it is tiny with digest" in refused(other, one, two, "--out", out)
    two.write_text(two.read_text().replace("a", "b", 1))
    assert f"{two}: has changed" in refused(*whole)


def test_a_folder_with_something_else_in_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    (tmp_path / "o").mkdir()
    (tmp_path / "o/thesis.doc").write_text("precious")
    code, _, error = run(capsys, bundle, corpus, "--out", tmp_path / "o")
    assert (code, "holds thesis.doc but no job.json" in error) == (2, True)
    (tmp_path / "o/job.json").write_text("{}")
    code, _, error = run(capsys, bundle, corpus, "--out", tmp_path / "o")
    assert (code, "not a job that this bei" in error) == (2, True)
    assert (tmp_path / "o/thesis.doc").read_text() == "precious"


def test_two_at_once_in_one_folder(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bei.runtime.corpus.prepare import holding
    from bei.runtime.corpus.storage import locate

    corpus = write_jsonl(tmp_path / "in.jsonl", [{"text": "a"}])
    with holding(locate(str(tmp_path / "o"))):
        code, _, error = run(capsys, bundle, corpus, "--out", tmp_path / "o")
    assert (code, "another bei-embed is writing there" in error) == (2, True)
    assert run(capsys, bundle, corpus, "--out", tmp_path / "o")[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(
    bundle: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The third file written meets a full disk."""
    arguments = (bundle, corpus, "--out", tmp_path / "o", "--shard-rows", 100)
    real, count = Path.open, 0

    def opened(path: Path, mode: str = "r", *args: object, **options: object) -> object:
        nonlocal count
        if mode == "wb":
            count += 1
            if count > 3:
                return real(Path("/dev/full"), "wb", 0)
        return real(path, mode, *args, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        code, _, error = run(capsys, *arguments)
    assert code == 2
    assert "cannot be written (No space left on device)" in error and "run the same command again" in error
    assert not [path for path in (tmp_path / "o").iterdir() if "partial" in path.name]
    assert run(capsys, *arguments)[0] == 1
    assert len(read(tmp_path / "o")) + len(failures(tmp_path / "o")) == SHARDS * 10
