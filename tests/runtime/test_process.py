"""A server's life as a process: draining, signals, keys that change, TLS, several bundles and replicas."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.runtime.fake_server import vector
from tests.runtime.processes import ENV, server
from tests.runtime.tiny import CLS, SEP, VOCAB, write_bundle

FAKE = "tests.runtime.fake_server"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("process") / "b", max_batch=64))


def ask(url: str, text: str = "hello", **options: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"input": text}, timeout=30, **options)  # type: ignore[arg-type]


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def started_asking(url: str, text: str, answers: list[httpx.Response]) -> threading.Thread:
    """In the background; returns when the server has accepted it."""

    def run() -> None:
        with contextlib.suppress(httpx.HTTPError):
            answers.append(ask(url, text))

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: httpx.get(f"{url}/stats").json()["models"][0]["open_requests"] > 0)
    return thread


def test_a_signal_drains_then_the_process_ends_well(folder: str) -> None:
    answers: list[httpx.Response] = []
    with server(folder, module=FAKE) as (process, url), httpx.Client(base_url=url) as held:
        assert held.get("/health").status_code == 200
        thread = started_asking(url, "world", answers)
        process.send_signal(signal.SIGTERM)
        until(lambda: held.get("/health").status_code == 503)
        assert held.get("/v1/health/live").status_code == 200
        refused = ask(url)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after-ms"]) > 0
        assert process.communicate(timeout=30) == ("", "")
        assert process.returncode == 0
        thread.join()
    assert [answer.status_code for answer in answers] == [200]


def test_the_drain_has_a_limit(folder: str) -> None:
    answers: list[httpx.Response] = []
    with server(folder, "--drain-seconds", "0", module=FAKE) as (process, url):
        thread = started_asking(url, "world", answers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        thread.join()
    assert [answer.status_code for answer in answers] == [503]
    assert answers[0].headers["x-should-retry"] == "true"


def test_a_second_signal_ends_the_process_at_once(folder: str) -> None:
    answers: list[httpx.Response] = []
    with server(folder, module=FAKE) as (process, url):
        thread = started_asking(url, "world", answers)
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/health").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        thread.join()
    assert answers == []


def test_a_signal_while_loading_ends_the_process_well(folder: str) -> None:
    code = (
        "import os, signal, time; from bei.runtime import cli, serve\n"
        "serve.loaded = lambda *a, **k: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(30))\n"
        f"cli.main([{folder!r}, '--port', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_keys_from_a_file_are_read_again_on_sighup(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\nsecond\n")

    def status(key: str) -> int:
        return ask(url, headers={"authorization": f"Bearer {key}"}).status_code

    with server(folder, "--api-key-file", str(file)) as (process, url):
        assert [status(key) for key in ("first", "second", "third")] == [200, 200, 401]
        file.write_text("third\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: status("third") == 200)
        assert status("first") == 401
        file.unlink()
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        assert "the API keys cannot be read" in process.stderr.readline()
        assert status("third") == 200


def test_keys_from_the_environment(folder: str) -> None:
    with server(folder, environment={"BEI_API_KEYS": "one, two"}) as (_, url):
        assert ask(url).status_code == 401
        assert ask(url, headers={"authorization": "Api-Key two"}).status_code == 200


def test_several_bundles_replicas_and_names(folder: str, tmp_path: Path) -> None:
    other = str(write_bundle(tmp_path / "b", name="other", max_batch=64))
    names = ("--served-model-name", "left", "--served-model-name", "right")
    with server(folder, other, "--replicas", "2", "--strict-model-name", *names) as (_, url):
        stats = httpx.get(f"{url}/stats").json()
        assert [(model["name"], model["replicas_alive"]) for model in stats["models"]] == [
            ("left", 2),
            ("right", 2),
        ]
        for name in ("left", "right"):
            body = {"input": "hello", "model": name}
            assert httpx.post(f"{url}/v1/embeddings", json=body).json()["model"] == name
        answer = httpx.post(f"{url}/v1/embeddings", json={"input": "hello", "model": "up"})
        assert answer.status_code == 404


def test_a_dead_replica_is_seen_and_its_work_is_done(folder: str) -> None:
    ids = [CLS, VOCAB["hello"], SEP]
    with server("--die-after", "20", folder, "--replicas", "2", module=FAKE) as (_, url):
        for _ in range(200):
            vectors = [ask(url).json()["data"][0]["embedding"] for _ in range(2)]
            np.testing.assert_allclose(vectors, [vector(ids)] * 2, atol=1e-6)
            (model,) = httpx.get(f"{url}/stats").json()["models"]
            if model["replicas_alive"] == 1:
                break
        assert (model["replicas"], model["replicas_alive"], model["ready"]) == (2, 1, True)


def test_without_any_engine_the_server_is_not_healthy(folder: str) -> None:
    with server("--die-after", "4", folder, module=FAKE) as (_, url):
        codes = [ask(url).status_code for _ in range(10)]
        assert codes == sorted(codes)
        assert set(codes) == {200, 503}
        assert httpx.get(f"{url}/health").status_code == 503
        assert httpx.get(f"{url}/v1/health/live").status_code == 503


def test_tls(folder: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    with server(folder, "--tls-cert", str(certificate), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert ask(url, verify=trusted).status_code == 200
        with pytest.raises(httpx.HTTPError):
            ask(url.replace("https", "http"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "missing.pem"], "--tls-cert, --tls-key: got one of them"),
        (["--tls-cert", "missing.pem", "--tls-key", "missing.pem"], "no usable certificate and key"),
        (["--api-key-file", "missing"], "missing: the API keys cannot be read (No such file"),
        (["--api-key-file", os.devnull], "holds no API key"),
        (["--served-model-name", "a", "--served-model-name", "b"], "given 2 times for 1 bundles"),
        (["--max-batch-tokens", "257"], "tiny was compiled for at most 256"),
        (["--devices", "0,1"], "runs on the CPU. Use --replicas"),
    ],
)
def test_options_that_cannot_be_used_are_one_message(folder: str, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "bei.runtime.cli", folder, "--port", "0", *arguments]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_bundle_or_name_twice(folder: str, tmp_path: Path) -> None:
    other = str(write_bundle(tmp_path / "b"))
    for bundles, message in (
        ([folder, folder], "given twice"),
        ([folder, other], "a second model named 'tiny'"),
    ):
        command = [sys.executable, "-m", "bei.runtime.cli", *bundles, "--port", "0"]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr
