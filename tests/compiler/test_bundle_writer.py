"""A bundle appears whole or not at all."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from bei.compiler.bundle import check_destination, writing
from bei.errors import BundleError
from bei.manifest import MANIFEST_FILE


def finish(folder: Path) -> None:
    """The writer's manifest is the builder's business; any file of that name makes the folder a bundle here."""
    (folder / MANIFEST_FILE).write_text("{}")


def test_appears_complete_and_replaces_an_older_bundle(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    for content in (b"one", b"two"):
        with writing(out) as writer:
            assert not out.exists() or (out / "a").read_bytes() == b"one"
            writer.write("a", content)
            finish(writer.folder)
        assert (out / "a").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["m.bundle"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), writing(tmp_path / "m.bundle") as writer:
        writer.write("a", b"half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_keeps_the_older_bundle(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    with writing(out) as writer:
        writer.write("a", b"old")
        finish(writer.folder)
    with pytest.raises(ValueError, match="stop"), writing(out) as writer:
        writer.write("a", b"new")
        raise ValueError("stop")
    assert (out / "a").read_bytes() == b"old"


def test_disk_full_is_one_message(tmp_path: Path) -> None:
    def full() -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BundleError, match=r"No space left on device.*left behind"), writing(tmp_path / "m"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_never_replaces_what_is_not_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("irreplaceable")
    with pytest.raises(BundleError, match=r"not a bundle.*--out"):
        check_destination(tmp_path / "thesis")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="not a folder"):
        check_destination(tmp_path / "file")
    with pytest.raises(BundleError, match="does not exist"):
        check_destination(tmp_path / "nowhere" / "m.bundle")


KILLED = """
import os, signal, sys
from pathlib import Path
from bei.compiler.bundle import writing
with writing(Path(sys.argv[1])) as writer:
    writer.write("a", b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_build_cleans_up_after_a_killed_one(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    done = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False)
    assert done.returncode == -9
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with writing(out) as writer:
        writer.write("a", b"whole")
        finish(writer.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["m.bundle"]


def test_a_bundle_that_a_killed_build_moved_aside_comes_back(tmp_path: Path) -> None:
    out = tmp_path / "m.bundle"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    aside = tmp_path / f".m.bundle.replaced-{int(gone.stdout)}"
    aside.mkdir()
    (aside / "a").write_text("old")
    finish(aside)
    with pytest.raises(ValueError, match="stop"), writing(out):
        raise ValueError("stop")
    assert (out / "a").read_text() == "old"


def test_another_running_build_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".m.bundle.partial-{os.getppid()}"
    other.mkdir()
    with writing(tmp_path / "m.bundle") as writer:
        writer.write("a", b"x")
        finish(writer.folder)
    assert other.exists()
