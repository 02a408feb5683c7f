"""bei-compile --cache: what is in it is not built again, and what is damaged is never served."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

import bei
from bei.compiler import build
from bei.compiler.cache import cache as cache_module
from bei.compiler.cli import main
from bei.compiler.lowering.attention import attention
from bei.compiler.parity.report import decode_report
from bei.errors import InputError
from bei.manifest import MANIFEST_FILE, decode_manifest, encode_manifest
from bei.runtime.bundle import open_bundle
from tests.compiler.checkpoint import tiny

pytest.importorskip("pyarrow", reason="needs pyarrow (extra: embed)")

TARGETS = ("--targets", "onnxruntime-cpu,onnxruntime-cuda")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write(tmp_path / "checkpoint", tiny.files())


@pytest.fixture
def never_built(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and from then on a build is an error."""

    def refuse(*given: object, **more: object) -> None:
        raise AssertionError("built again")

    return lambda: monkeypatch.setattr(build, "build_engine", refuse)


class Compiles:
    """Builds of one checkpoint through one cache."""

    def __init__(self, checkpoint: Path, cache: str | Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._given = ["--repo", str(checkpoint), "--cache", str(cache), "--json"]
        self._capsys = capsys

    def __call__(self, out: Path, *, parity: bool = False) -> tuple[dict[str, Any], str]:
        """The result, and what was said on standard error. FP16 is too coarse for weights this random: with parity only
        the CPU's engine."""
        flags = ("--target", "onnxruntime-cpu") if parity else (*TARGETS, "--no-parity")
        assert main([*self._given, "--out", str(out), *flags]) == 0
        said = self._capsys.readouterr()
        return json.loads(said.out), said.err


@pytest.fixture
def compiled(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compiles:
    return Compiles(checkpoint, tmp_path / "cache", capsys)


def entry_of(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def files_of(bundle: Path) -> dict[str, bytes]:
    return {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}


def test_the_second_time_nothing_is_built(
    compiled: Compiles, tmp_path: Path, never_built: Callable[[], None]
) -> None:
    one, two = tmp_path / "one" / "tiny.bundle", tmp_path / "two" / "tiny.bundle"
    one.parent.mkdir()
    two.parent.mkdir()
    assert compiled(one)[0]["cached"] is False
    never_built()
    result, said = compiled(two)
    assert (result["cached"], said) == (True, "")
    assert files_of(two) == files_of(one)
    with bei.load(two, allow_unverified=True) as model:
        assert model.encode(["hello world"]).shape == (1, 8)


def test_weights_are_not_stored_twice(compiled: Compiles, tmp_path: Path) -> None:
    compiled(tmp_path / "tiny.bundle")
    with tarfile.open(entry_of(tmp_path / "cache")) as archive:
        names = archive.getnames()
    assert names[0] == MANIFEST_FILE
    assert {"model.onnx", "engines/onnxruntime-cuda/model.onnx"} <= set(names)
    assert not {"model.safetensors", "source/config.json"} & set(names)


def test_another_name_and_another_place(
    compiled: Compiles,
    checkpoint: Path,
    tmp_path: Path,
    never_built: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The certificate is of the same bytes, and goes along."""
    compiled(tmp_path / "one.bundle", parity=True)
    never_built()
    moved = checkpoint.rename(tmp_path / "moved")
    again = Compiles(moved, tmp_path / "cache", capsys)
    result, _ = again(tmp_path / "two.bundle", parity=True)
    manifest = open_bundle(tmp_path / "two.bundle").manifest
    assert (result["cached"], manifest.name, manifest.source.repo) == (True, "two", str(moved))
    report = decode_report((tmp_path / "two.bundle" / "parity.json").read_bytes(), "")
    assert report.model == "two"
    assert "two" in (tmp_path / "two.bundle" / "parity.html").read_text()
    with bei.load(tmp_path / "two.bundle") as model:
        assert model.manifest.parity.verdicts["onnxruntime-cpu"] == "passed"


def test_a_changed_checkpoint_is_another_one(compiled: Compiles, checkpoint: Path, tmp_path: Path) -> None:
    compiled(tmp_path / "tiny.bundle")
    weights = tiny.tensors()
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    tiny.write(checkpoint, tiny.files(weights=weights))
    assert compiled(tmp_path / "tiny.bundle")[0]["cached"] is False
    assert len(list((tmp_path / "cache").iterdir())) == 2


def _rewritten(change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> Any:
    """A damage that leaves a good tar."""

    def damage(entry: Path) -> None:
        with tarfile.open(entry) as archive:
            files = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
        with tarfile.open(entry, "w") as archive:
            for name, data in change(files):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, BytesIO(data))

    return damage


def _manifest(change: Callable[[Any], Any]) -> Any:
    """A damage to the manifest, with a digest that fits."""
    return _rewritten(lambda f: [(f[0][0], encode_manifest(change(decode_manifest(f[0][1], "")))), *f[1:]])


def _with_file(manifest: Any, name: str) -> Any:
    return msgspec.structs.replace(manifest, files={**manifest.files, name: manifest.files["model.onnx"]})


DAMAGE: dict[str, Any] = {
    "empty": lambda entry: entry.write_bytes(b""),
    "no tar": lambda entry: entry.write_bytes(b"not a tar" * 999),
    "cut short": lambda entry: entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2]),
    "a byte of the graph": _rewritten(lambda f: [*f[:-1], (f[-1][0], f[-1][1][:-1] + b"?")]),
    "a byte of the manifest": _rewritten(lambda f: [(f[0][0], f[0][1].replace(b"bert", b"berd")), *f[1:]]),
    "a file is missing": _rewritten(lambda f: f[:-1]),
    "a file too many": _rewritten(lambda f: [*f, ("evil.txt", b"x")]),
    "a file twice": _rewritten(lambda f: [*f, f[-1]]),
    "the manifest is last": _rewritten(lambda f: [*f[1:], f[0]]),
    "a name that leaves the bundle": _manifest(lambda m: _with_file(m, "../outside")),
    "another checkpoint's": _manifest(
        lambda m: msgspec.structs.replace(m, source=msgspec.structs.replace(m.source, files={}))
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_entry_is_built_again_and_replaced(
    what: str, compiled: Compiles, tmp_path: Path, never_built: Callable[[], None]
) -> None:
    compiled(tmp_path / "good.bundle")
    entry = entry_of(tmp_path / "cache")
    DAMAGE[what](entry)
    result, said = compiled(tmp_path / "again.bundle")
    assert result["cached"] is False
    assert "damaged" in said
    assert said.count("warning:") == 1
    assert open_bundle(tmp_path / "again.bundle").manifest.name == "again"
    assert not (tmp_path / "outside").exists()
    never_built()
    assert compiled(tmp_path / "third.bundle")[0]["cached"] is True


@pytest.mark.parametrize("uri", ["memory://bei/cache", "file://{}/with/folders"])
def test_object_stores(
    uri: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    never_built: Callable[[], None],
) -> None:
    pytest.importorskip("fsspec")
    compiled = Compiles(checkpoint, uri.format(tmp_path), capsys)
    assert compiled(tmp_path / "one.bundle")[0]["cached"] is False
    never_built()
    assert compiled(tmp_path / "two.bundle")[0]["cached"] is True
    open_bundle(tmp_path / "two.bundle")


def test_what_failed_its_gate_is_not_kept(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*parts: Any) -> Any:
        right: Any = attention
        return right(*parts[:-1], replace(parts[-1], scale=1.5 * parts[-1].scale))

    monkeypatch.setattr("bei.compiler.lowering.onnx_ops.attention", wrong)
    given = ["--repo", str(checkpoint), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "o")]
    assert main([*given, "--target", "onnxruntime-cpu"]) == 1
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_fails_costs_a_warning(
    compiled: Compiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object) -> None:
        raise InputError("s3://full: cannot be written")

    monkeypatch.setattr("bei.runtime.corpus.storage.write", full)
    result, said = compiled(tmp_path / "tiny.bundle")
    assert result["cached"] is False
    assert "not kept: s3://full" in said
    open_bundle(tmp_path / "tiny.bundle")


def test_places_that_cannot_be(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    given = ["--repo", str(checkpoint), "--out", str(tmp_path / "o"), "--no-parity", *TARGETS]
    for place, message in (
        (str(tmp_path / "file" / "x"), "cannot be created"),
        ("s4://x", "cannot be reached"),
    ):
        assert main([*given, "--cache", place]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setattr(cache_module, "find_spec", lambda name: None)
    assert main([*given, "--cache", str(tmp_path / "cache")]) == 2
    assert "pip install 'bei[embed]'" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_card_is_a_gate_for_hits_as_well(
    checkpoint: Path, compiled: Compiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled(tmp_path / "tiny.bundle")
    given = ["--repo", str(checkpoint), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "o")]
    assert main([*given, "--no-parity", *TARGETS, "--card", "L4"]) == 2
    assert "none of the targets runs on SM89" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_two_writers_at_once(checkpoint: Path, compiled: Compiles, tmp_path: Path) -> None:
    """Whoever is last, one good entry remains."""
    command = [sys.executable, "-m", "bei.compiler.cli", "--repo", str(checkpoint), "--no-parity", *TARGETS]
    command += ["--cache", str(tmp_path / "cache")]
    both = [subprocess.Popen([*command, "--out", str(tmp_path / f"{n}.bundle")]) for n in "ab"]
    assert [process.wait(120) for process in both] == [0, 0]
    entry_of(tmp_path / "cache")
    result, said = compiled(tmp_path / "c.bundle")
    assert (result["cached"], said) == (True, "")


def test_what_killed_writers_left_is_removed_and_living_ones_are_let_be(
    compiled: Compiles, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    killed, writing, foreign = (cache / name for name in (".a.tar.partial-1", ".b.tar.partial-2", "c.tar"))
    for file in (killed, writing, foreign):
        file.write_bytes(b"some of it")
    long_ago = time.time() - 2 * cache_module.ABANDONED.total_seconds()
    for file in (killed, foreign):
        os.utime(file, (long_ago, long_ago))
    compiled(tmp_path / "tiny.bundle")
    assert not killed.exists() and writing.exists() and foreign.exists()


def test_left_overs_that_may_not_be_removed_change_nothing(
    compiled: Compiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*given: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bei.runtime.corpus.storage.remove_partial", refused)
    assert compiled(tmp_path / "one.bundle")[1] == ""
    assert compiled(tmp_path / "two.bundle")[0]["cached"] is True
