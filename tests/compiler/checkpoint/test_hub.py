"""fetch() against the real huggingface_hub client and a loopback Hub."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from tests.compiler.checkpoint import tiny
from tests.compiler.checkpoint.counting import Counting
from tests.compiler.checkpoint.hub_server import HubServer, Repo, commit

from bei import __version__
from bei.compiler.checkpoint.hub import fetch
from bei.errors import CheckpointError

NAME = "acme/tiny"


def paths(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_fetches_only_what_is_needed(hub: HubServer) -> None:
    dense = {"in_features": 8, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"}
    files = tiny.files(
        more={
            "modules.json": tiny.modules("Pooling", "Dense"),
            "1_Pooling/config.json": tiny.MEAN,
            "2_Dense/config.json": dense,
            "2_Dense/model.safetensors": save({"linear.weight": np.zeros((8, 8), np.float32)}),
            "2_Dense/pytorch_model.bin": b"pickle",
            "pytorch_model.bin": b"pickle",
            "onnx/model.onnx": b"onnx",
            "onnx/config.json": b"{}",
            "modeling.py": b"print('no')",
            "other.safetensors": b"unrelated",
        }
    )
    hub.repos[NAME] = Repo(files=files)
    fetched = fetch(NAME)
    assert fetched.revision == commit(files)
    assert fetched.license == "mit"
    assert paths(fetched.folder) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }
    for name in paths(fetched.folder):
        assert (fetched.folder / name).read_bytes() == files[name]


@pytest.mark.parametrize("revision", [None, "main", "v1", "refs/pr/5", "hash"])
def test_every_kind_of_revision_becomes_a_commit_hash(hub: HubServer, revision: str | None) -> None:
    files = tiny.files()
    other = tiny.files(config={"layer_norm_eps": 1e-5})
    hub.repos[NAME] = Repo(files=files, branches={"v1": other, "refs/pr/5": other})
    expected = other if revision in ("v1", "refs/pr/5", "hash") else files
    fetched = fetch(NAME, revision=commit(other) if revision == "hash" else revision)
    assert fetched.revision == commit(expected)
    assert (fetched.folder / "config.json").read_bytes() == expected["config.json"]


def test_sharded_weights(hub: HubServer) -> None:
    weights = tiny.tensors()
    half = len(weights) // 2
    shards = {
        "model-00001-of-00002.safetensors": dict(list(weights.items())[:half]),
        "model-00002-of-00002.safetensors": dict(list(weights.items())[half:]),
    }
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    files = tiny.files(more={"model.safetensors": None, "model.safetensors.index.json": index})
    files |= {file: save(part) for file, part in shards.items()}
    hub.repos[NAME] = Repo(files={**files, "consolidated.safetensors": save(weights)})
    folder = fetch(NAME).folder
    assert {name for name in paths(folder) if name.endswith(".safetensors")} == set(shards)


def test_credentials_go_to_the_hub_and_not_to_the_cdn(hub: HubServer) -> None:
    hub.repos[NAME] = Repo(files=tiny.files(), private=True, tokens=frozenset({"hf_good"}))
    fetch(NAME, token="hf_good")
    assert all(seen.headers["authorization"] == "Bearer hf_good" for seen in hub.hub_requests)
    assert hub.cdn_requests and not any("authorization" in seen.headers for seen in hub.cdn_requests)


def test_a_cut_connection_resumes_where_it_stopped(hub: HubServer) -> None:
    weights = {"w": np.arange(3_000_000, dtype=np.float32)}
    hub.repos[NAME] = Repo(files=tiny.files(weights=weights))
    hub.cuts["model.safetensors"] = [11_000_000]
    folder = fetch(NAME).folder
    assert (folder / "model.safetensors").read_bytes() == hub.repos[NAME].files["model.safetensors"]
    ranges = [seen.headers.get("range") for seen in hub.cdn_requests]
    assert len(ranges) == 2 and ranges[0] is None
    assert ranges[1] is not None and int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0


def test_a_second_fetch_downloads_nothing(hub: HubServer) -> None:
    hub.repos[NAME] = Repo(files=tiny.files())
    first = fetch(NAME)
    before = len(hub.cdn_requests)
    assert fetch(NAME) == first
    assert len(hub.cdn_requests) == before


@pytest.mark.parametrize("revision", [None, "refs/pr/5"])
def test_offline_uses_the_cache_and_asks_nobody(hub: HubServer, revision: str | None) -> None:
    hub.repos[NAME] = Repo(files=tiny.files(), branches={"refs/pr/5": tiny.files(config={"x": 1})})
    first = fetch(NAME, revision=revision)
    asked = len(hub.hub_requests)
    assert fetch(NAME, revision=revision, offline=True) == first
    assert len(hub.hub_requests) == asked


def test_a_hub_that_is_down_is_no_matter_when_all_is_cached(hub: HubServer) -> None:
    hub.repos[NAME] = Repo(files=tiny.files())
    first = fetch(NAME)
    hub.stop()
    assert fetch(NAME) == first


@pytest.mark.parametrize("flag", [True, False], ids=["flag", "environment"])
def test_offline_without_a_cache(hub: HubServer, flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not flag)
    with pytest.raises(
        CheckpointError, match=r"not \(completely\) in the Hub cache.*Run once without --offline"
    ):
        fetch(NAME, offline=flag)
    assert hub.hub_requests == []


def test_offline_with_half_a_cache(hub: HubServer) -> None:
    hub.repos[NAME] = Repo(files=tiny.files())
    (fetch(NAME).folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"not \(completely\) in the Hub cache"):
        fetch(NAME, offline=True)


def test_offline_with_a_cache_that_an_old_client_wrote(hub: HubServer, tmp_path: Path) -> None:
    """Before version 2, huggingface_hub kept no listing of a repository."""
    files = tiny.files()
    storage = tmp_path / "cache/models--acme--tiny"
    tiny.write(storage / "snapshots" / commit(files), files)
    tiny.write(storage / "refs", {"main": commit(files).encode()})
    assert fetch(NAME, offline=True).revision == commit(files)
    (storage / "snapshots" / commit(files) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the Hub cache holds no weights"):
        fetch(NAME, offline=True)


@contextmanager
def broken(hub: HubServer, how: str) -> Iterator[None]:
    if how == "down":
        hub.stop()
    else:
        hub.status = int(how)
    yield


@pytest.mark.parametrize(
    ("repo", "revision", "token", "message"),
    [
        ("acme/absent", None, None, r"acme/absent: no such repository at http.*log in"),
        ("acme/absent", None, "hf_good", r"acme/absent: no such repository"),
        ("acme/private", None, None, r"acme/private: no such repository at http.*or it is private"),
        ("acme/gated", None, None, r"acme/gated: gated.*Accept its terms at http"),
        ("acme/gated", None, "hf_other", r"acme/gated: gated"),
        (NAME, "refs/pr/9", None, r"no revision 'refs/pr/9'.*refs/pr/N"),
        (NAME, None, "wrong", r"does not accept the token"),
        ("acme/pickle", None, None, r"no model.safetensors, only pytorch_model.bin.*\n.*save_pretrained"),
        ("acme/empty", None, None, r"acme/empty: no weights. Need model.safetensors"),
        ("not a repo id!", None, None, r"neither a folder nor a Hub id"),
        ("", None, None, r"'': no such folder"),
        ("a\0b", None, None, r"neither a folder nor a Hub id"),
        ("./absent", None, None, r"'\./absent': no such folder"),
        ("/absent/folder", None, None, r"no such folder"),
    ],
)
def test_refusals_say_what_to_do(
    hub: HubServer, repo: str, revision: str | None, token: str | None, message: str
) -> None:
    tokens = frozenset({"hf_good"})
    hub.repos[NAME] = Repo(files=tiny.files())
    hub.repos["acme/private"] = Repo(files=tiny.files(), private=True, tokens=tokens)
    hub.repos["acme/gated"] = Repo(files=tiny.files(), gated=True, tokens=tokens)
    hub.repos["acme/pickle"] = Repo(
        files=tiny.files(more={"model.safetensors": None, "pytorch_model.bin": b"x"})
    )
    hub.repos["acme/empty"] = Repo(files={"config.json": b"{}"})
    with pytest.raises(CheckpointError, match=message) as caught:
        fetch(repo, revision=revision, token=token)
    assert "\n\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("down", "cannot be fetched.*Check the connection"),
        ("500", "cannot be fetched|answered 500"),
        ("403", "403"),
    ],
)
def test_a_hub_in_trouble(hub: HubServer, how: str, message: str) -> None:
    with broken(hub, how), pytest.raises(CheckpointError, match=message):
        fetch(NAME)


def test_a_server_that_is_no_hub(hub: HubServer) -> None:
    hub.status = 200
    with pytest.raises(CheckpointError, match=r"acme/tiny: .*HF_ENDPOINT"):
        fetch(NAME)


def test_a_folder_wins_over_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / NAME, tiny.files())
    monkeypatch.chdir(tmp_path)
    fetched = fetch(NAME)
    assert (fetched.folder, fetched.revision, fetched.license) == (tmp_path / NAME, None, "mit")
    assert hub.hub_requests == []
    with pytest.raises(CheckpointError, match="a local folder has no revisions"):
        fetch(NAME, revision="main")


def test_too_little_disk_is_known_before_the_download(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos[NAME] = Repo(files=tiny.files())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    with pytest.raises(CheckpointError, match=r"needs .* GB free\. Free some space, or set HF_HOME"):
        fetch(NAME)
    assert hub.cdn_requests == []


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "the disk of .* is full"), (errno.EACCES, "cannot be written")]
)
def test_a_disk_that_refuses(
    hub: HubServer, number: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    hub.repos[NAME] = Repo(files=tiny.files())
    monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    with pytest.raises(CheckpointError, match=message):
        fetch(NAME)


def test_progress_counts_every_byte_once(hub: HubServer) -> None:
    files = tiny.files(weights={"w": np.arange(3_000_000, dtype=np.float32)})
    hub.repos[NAME] = Repo(files=files)
    hub.cuts["model.safetensors"] = [11_000_000]
    progress = Counting()
    fetch(NAME, progress=progress)
    total = sum(len(files[name]) for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"))
    assert progress.stages == {"downloading": [total, total]}


def test_the_environment_is_the_librarys(hub: HubServer, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_TOKEN, as a user sets them."""
    hub.repos[NAME] = Repo(files=tiny.files(), private=True, tokens=frozenset({"hf_env"}))
    code = (
        "import json; from bei.compiler.checkpoint.hub import fetch; "
        f"found = fetch({NAME!r}); print(json.dumps([str(found.folder), found.revision]))"
    )
    home = tmp_path / "home"
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_env",
    }
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    folder, revision = json.loads(ran.stdout)
    assert Path(folder).is_relative_to(home) and revision == commit(hub.repos[NAME].files)
    assert {seen.headers.get("authorization") for seen in hub.hub_requests} == {"Bearer hf_env"}
    assert {seen.headers["user-agent"].split(";")[0] for seen in hub.hub_requests} == {f"bei/{__version__}"}
