"""Damaged, tampered and foreign bundles are refused; the right engine is chosen and the choice explained."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtime.tiny import engine, seal, write_bundle

from bei.errors import BundleError
from bei.gpu import Gpu
from bei.manifest import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    EngineRecord,
    Manifest,
    ParityRecord,
    decode_manifest,
    encode_manifest,
)
from bei.runtime.bundle import choose_engine, open_bundle, unlisted_files
from bei.runtime.model import load


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "good")


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def manifest_of(folder: Path) -> Manifest:
    return decode_manifest((folder / MANIFEST_FILE).read_bytes(), "m")


def rewrite(folder: Path, **changes: Any) -> None:
    manifest = msgspec.structs.replace(manifest_of(folder), **changes)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def test_a_good_bundle_opens(good: Path) -> None:
    bundle = open_bundle(good)
    assert bundle.path == good.resolve()
    assert set(bundle.manifest.files) == {"model.onnx", "model.safetensors", "tokenizer.json", "parity.json"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_refused_or_changes_nothing(copy: Path, data: st.DataObject) -> None:
    """Only the manifest's own spacing is free: it does not reach what is read."""
    name = data.draw(st.sampled_from(sorted(os.listdir(copy))))
    before, file = (copy / name).read_bytes(), copy / name
    at = data.draw(st.integers(0, len(before) - 1))
    flip = data.draw(st.integers(1, 255))
    file.write_bytes(before[:at] + bytes([before[at] ^ flip]) + before[at + 1 :])
    try:
        if name == MANIFEST_FILE:
            try:
                after = open_bundle(copy).manifest
            except BundleError:
                return
            assert after == decode_manifest(before, "before")
        else:
            with pytest.raises(BundleError, match=name):
                load(copy)
    finally:
        file.write_bytes(before)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "tokenizer.json", "parity.json"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_refused(copy: Path, name: str, keep: float) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(BundleError, match=f"{name} has {int(len(data) * keep)} bytes, need {len(data)}"):
        open_bundle(copy, verify=False)


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "tokenizer.json", "parity.json"])
def test_a_removed_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(copy)


def test_every_damaged_file_is_named_in_one_error(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "parity.json").write_text("longer than it was")
    with pytest.raises(
        BundleError, match=r"(?s)model\.onnx is missing.*parity\.json has|parity\.json has.*model\.onnx"
    ):
        open_bundle(copy)


def test_a_linked_file_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.onnx").rename(tmp_path / "elsewhere")
    (copy / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"model\.onnx is a symbolic link"):
        open_bundle(copy)


def test_a_linked_folder_inside_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "plan").write_bytes(b"x")
    (copy / "engines").symlink_to(tmp_path / "outside")
    manifest = manifest_of(copy)
    files = manifest.files | {"engines/plan": manifest.files["parity.json"]}
    rewrite(copy, files=files)
    with pytest.raises(BundleError, match="engines/plan is a symbolic link"):
        open_bundle(copy)


def test_a_folder_in_a_files_place_is_refused(copy: Path) -> None:
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model\.onnx is not a regular file"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "./model.onnx", "a\\b", "c:x", MANIFEST_FILE]
)
def test_names_that_leave_the_bundle_are_refused(copy: Path, name: str) -> None:
    manifest = manifest_of(copy)
    rewrite(copy, files=manifest.files | {name: manifest.files["model.onnx"]})
    with pytest.raises(BundleError, match="leave the bundle"):
        open_bundle(copy)


def test_unlisted_files_are_ignored_and_can_be_listed(copy: Path) -> None:
    (copy / "notes").mkdir()
    (copy / "notes" / "README.md").write_text("mine")
    assert unlisted_files(open_bundle(copy)) == ["notes/README.md"]


def test_a_newer_schema_says_upgrade(copy: Path) -> None:
    rewrite(copy, schema_version=SCHEMA_VERSION + 1)
    with pytest.raises(BundleError, match=r"schema version 2.*Upgrade bei"):
        open_bundle(copy)


def test_an_edited_manifest_is_refused(copy: Path) -> None:
    text = (copy / MANIFEST_FILE).read_text()
    (copy / MANIFEST_FILE).write_text(text.replace('"normalized": true', '"normalized": false'))
    with pytest.raises(BundleError, match="edited or damaged"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema_version": 1}',
        b'{"schema_version": "1"}',
    ],
)
def test_what_is_no_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        open_bundle(copy)


def test_what_is_no_bundle_is_refused(tmp_path: Path, good: Path) -> None:
    with pytest.raises(BundleError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="not a folder"):
        open_bundle(good / "model.onnx")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        open_bundle(tmp_path)


def test_an_engine_outside_the_listed_files_is_refused(copy: Path) -> None:
    rewrite(copy, engines=(engine(path="other.onnx"),))
    with pytest.raises(BundleError, match=r"other\.onnx is used but not listed"):
        open_bundle(copy)


def test_a_graph_that_onnxruntime_cannot_read_is_one_error(copy: Path) -> None:
    manifest = manifest_of(copy)
    (copy / "model.onnx").write_bytes(b"no graph")
    seal(copy, manifest)
    with pytest.raises(Exception, match=r"cannot load model\.onnx"):
        load(copy)


def test_weights_tampered_with_never_give_a_model(copy: Path) -> None:
    """They are hashed while the engine starts, so the check comes after it: still nothing is returned."""
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(BundleError, match=r"model\.safetensors has changed"):
        load(copy)


def test_golden_ids_are_checked(copy: Path) -> None:
    manifest = manifest_of(copy)
    golden = msgspec.structs.replace(manifest.tokenizer.golden[0], ids=(1, 2, 3))
    rewrite(copy, tokenizer=msgspec.structs.replace(manifest.tokenizer, golden=(golden,)))
    with pytest.raises(BundleError, match=r"tokenizers .* other ids than the bundle was built with"):
        load(copy)


# Which engine


def three(good: Path, **verdicts: str) -> Manifest:
    manifest = manifest_of(good)
    records = tuple(engine(target) for target in ("fast", "middle", "plain"))
    return msgspec.structs.replace(
        manifest,
        engines=records,
        fallback=("fast", "middle", "plain"),
        parity=msgspec.convert({"file": None, "verdicts": verdicts}, ParityRecord),
    )


def unless(*targets: str) -> Callable[[EngineRecord], str | None]:
    return lambda record: "no such GPU" if record.target in targets else None


def test_the_chain_is_followed_and_explained(good: Path) -> None:
    manifest = three(good, fast="passed", middle="failed", plain="passed")
    choice = choose_engine(manifest, available=unless("fast"))
    assert choice.record.target == "plain"
    assert [skip.target for skip in choice.skipped] == ["fast", "middle"]
    assert choice.skipped[0].reason == "no such GPU"
    assert "'failed'" in choice.skipped[1].reason


def test_unproven_engines_need_permission(good: Path) -> None:
    manifest = three(good, fast="not run", plain="passed")
    assert choose_engine(manifest, available=unless()).record.target == "plain"
    assert choose_engine(manifest, allow_unverified=True, available=unless()).record.target == "fast"


def test_a_named_target_is_used_or_refused(good: Path) -> None:
    manifest = three(good, fast="passed", middle="failed", plain="passed")
    assert choose_engine(manifest, target="plain", available=unless()).record.target == "plain"
    with pytest.raises(BundleError, match=r"middle: parity verdict is 'failed'.*--allow-unverified"):
        choose_engine(manifest, target="middle", available=unless())
    with pytest.raises(BundleError, match="fast: no such GPU"):
        choose_engine(manifest, target="fast", available=unless("fast"))
    with pytest.raises(BundleError, match="no engine for target 'other'; the bundle has fast, middle, plain"):
        choose_engine(manifest, target="other", available=unless())


def test_a_gpu_engine_is_certified_for_the_kind_of_gpu_it_passed_on(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = three(good, fast="passed", plain="passed")
    fast = engine("fast", backend="tensorrt-rtx", device="cuda", compute_capabilities=("8.6", "8.9"))
    manifest = msgspec.structs.replace(
        manifest,
        engines=(fast, *manifest.engines[1:]),
        parity=msgspec.structs.replace(manifest.parity, classes={"fast": ("sm86",), "plain": ("cpu",)}),
    )
    here = [Gpu(index=i, name="some", sm=sm, memory=0, cuda=(13, 0)) for i, sm in enumerate((86, 89))]
    monkeypatch.setattr("bei.gpu.gpus", lambda: tuple(here))
    assert choose_engine(manifest, available=unless(), device=0).record.target == "fast"
    other = choose_engine(manifest, available=unless(), device=1)
    assert other.record.target == "plain"
    assert other.skipped[0].reason.startswith("it passed parity on sm86, this is sm89. Run bei-parity here")
    assert choose_engine(manifest, available=unless(), device=1, allow_unverified=True).record is fast


def test_no_engine_at_all_lists_every_reason(good: Path) -> None:
    manifest = three(good, fast="passed", plain="passed")
    with pytest.raises(BundleError, match=r"(?s)fast: no such GPU.*middle: parity.*plain: no such GPU"):
        choose_engine(manifest, available=unless("fast", "plain"))


def test_backends_say_why_they_cannot_run(good: Path) -> None:
    manifest = three(good, fast="passed")
    records = (engine("fast", device="cuda"), engine("other", layout="packed"))
    manifest = msgspec.structs.replace(manifest, engines=records, fallback=("fast",))
    with pytest.raises(BundleError, match=r"fast: .*CUDA"):
        choose_engine(manifest)
