"""bei-serve and bei-inspect as processes: what they print, and what they exit with."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.runtime.processes import ENV, server
from tests.runtime.tiny import engine, write_bundle

from bei.manifest import ParityRecord
from bei.runtime import cli, inspect_cli, listen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "b"
    records = (
        engine("tensorrt-rtx-sm89", device="cuda", status="built, not executed", evidence={"fused": 6}),
        engine(),
    )
    parity = ParityRecord(file=None, verdicts={"onnxruntime-cpu": "passed", "tensorrt-rtx-sm89": "passed"})
    return write_bundle(path, engines=records, fallback=tuple(r.target for r in records), parity=parity)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_cleanly(folder: Path, sent: signal.Signals) -> None:
    with server(str(folder), "--served-model-name", "mine", "--threads", "1") as (process, url):
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "hello"})
        assert answer.json()["model"] == "mine"
        process.send_signal(sent)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, "")
        assert err.startswith("bei-serve: mine: not tensorrt-rtx-sm89: ")  # the engine passed over, and why
        assert err.count("\n") == 1


def test_each_bundle_has_prompts_of_its_own(tmp_path: Path) -> None:
    one = write_bundle(tmp_path / "one", prompts={"query": "a "})
    two = write_bundle(tmp_path / "two", prompts={"query": "b "})
    told = {"prompts": {"passage": "c "}, "default_prompt_name": "passage", "similarity_fn_name": "cosine"}
    file = tmp_path / "config_sentence_transformers.json"
    file.write_text(json.dumps(told))
    given = [str(one), str(two), "--served-model-name", "one", "--served-model-name", "two"]
    with server(*given, "--prompts", str(file), "--prompts", "", "--threads", "1") as (_, url):

        def tokens(**options: str) -> int:
            (found,) = httpx.post(f"{url}/tokenize", json={"inputs": "a", **options}).json()
            return len(found)

        assert tokens(model="one") == 4 and tokens(model="two") == 3
        assert tokens(model="one", prompt_name="query") == tokens(model="two", prompt_name="query") == 4
        refused = httpx.post(
            f"{url}/tokenize", json={"inputs": "a", "model": "two", "prompt_name": "passage"}
        )
        assert refused.status_code == 422


def test_prompts_that_cannot_be_used_are_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, unknown = tmp_path / "wrong.json", tmp_path / "unknown.json"
    wrong.write_text('{"prompts": {"query": 5}}')
    unknown.write_text('{"prompts": {}, "default_prompt_name": "query"}')
    for given, message in (
        (["--prompts", str(wrong)], "wrong.json: holds no prompts"),
        (["--prompts", str(tmp_path / "nowhere")], "nowhere: cannot be read"),
        (["--prompts", str(unknown)], "default_prompt: 'query' is unknown"),
        (["--prompts", "", "--prompts", ""], "--prompts: given 2 times for 1 bundles"),
    ):
        assert cli.main([str(folder), *given, "--port", "0"]) == 2
        assert message in capsys.readouterr().err


def test_a_bundle_that_cannot_be_used_is_one_message(tmp_path: Path, folder: Path) -> None:
    for arguments, message in (
        ([str(tmp_path)], "no manifest.json"),
        ([str(folder), "--target", "other"], "no engine for target 'other'"),
        ([str(folder), "--target", "tensorrt-rtx-sm89"], "tensorrt-rtx-sm89: "),
    ):
        command = [sys.executable, "-m", "bei.runtime.cli", *arguments, "--port", "0"]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_port_in_use_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server(str(folder)) as (_, url):
        port = url.rsplit(":", 1)[1]
        assert cli.main([str(folder), "--port", port]) == 2
    assert f"127.0.0.1:{port}: cannot listen there" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--port=70000",
        "--port=-1",
        "--port=x",
        "--threads=0",
        "--max-queue-tokens=0",
        "--max-queue-tokens=1.5",
    ],
)
def test_numbers_out_of_range(folder: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([str(folder), option])
    assert "need a whole number" in capsys.readouterr().err


def test_a_host_that_is_none(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([str(folder), "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "192.0.2.1:0: cannot listen there" in capsys.readouterr().err


def test_answers_are_sent_without_delay() -> None:
    """asyncio sets TCP_NODELAY on connections whose socket names TCP; an answer in two packets takes 40 ms otherwise."""
    with listen.bind("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as accepted:
            assert accepted.proto == client.proto == socket.IPPROTO_TCP


def test_inspect_prints_one_json_object(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli.main([str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["uses"], facts["verified"]) == ("tiny", "onnxruntime-cpu", True)
    gpu, cpu = facts["engines"]
    assert not gpu["used"] and "CUDA" in gpu["reason"]
    assert (cpu["used"], cpu["parity"]) == (True, "passed")
    assert gpu["evidence"] == {"fused": 6}


def test_inspect_prints_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli.main([str(folder), "--no-verify"]) == 0
    out = capsys.readouterr().out
    for shown in (
        "example/tiny",
        "mean pooling, 8 dimensions, unit length",
        "16 tokens a text",
        "hashes not",
    ):
        assert shown in out
    assert "used here: first of the fallback chain" in out
    assert "built, not executed, parity passed" in out
    assert "fused 6" in out


def test_inspect_refuses_a_damaged_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "b")
    (folder / "parity.json").write_text("[]")
    assert inspect_cli.main([str(folder)]) == 2
    assert "parity.json has changed" in capsys.readouterr().err
    assert inspect_cli.main([str(folder), "--no-verify"]) == 0


def test_inspect_lists_steps_of_cuda_engines_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_cli.main([str(folder), "--steps"]) == 2
    assert "there is none. Build one with bei-compile --target cuda-sm90." in capsys.readouterr().err


def test_inspect_explains_that_nothing_can_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bundle(tmp_path / "b", parity=ParityRecord(file=None, verdicts={}))
    assert inspect_cli.main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "no engine" in out
    assert "parity verdict is 'not run'" in out
