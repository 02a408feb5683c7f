"""Every model of the zoo, as its stand-in (or the real one where it is at hand), against its reference."""

import json
from pathlib import Path

import pytest

from bei.compiler.cache import key
from bei.compiler.parity import matrix
from bei.compiler.parity.cli import main
from bei.compiler.parity.matrix import Matrix, Row, check_entry, render_matrix
from bei.compiler.zoo.sources import real_weights
from bei.compiler.zoo.zoo import ZooEntry, load_zoo

ZOO = Path(__file__).parents[3] / "model_zoo.yaml"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stand-ins")


@pytest.mark.parametrize("entry", load_zoo(ZOO), ids=lambda entry: entry.repo)
def test_every_model_of_the_zoo_passes(entry: ZooEntry, cache: Path) -> None:
    row = check_entry(entry, real_weights(entry, None), cache)
    assert (row.verdict, row.reason) == ("passed", None)
    assert row.non_finite == 0
    assert row.cosine is not None if entry.task == "embed" else row.logit_error is not None


def _zoo(path: Path, **changes: str) -> Path:
    """Two models, the second one with ``changes``."""
    facts = {"task": "embed", "adapter": "bert", "revision": "main", "licence": "mit", "status": "supported"}
    numbers = {"params": 1, "max_length": 512}
    small = "BAAI/bge-small-en-v1.5"
    listed = [
        {"repo": small, **facts, **numbers},
        {"repo": "BAAI/bge-base-en-v1.5", **facts, **numbers, **changes},
    ]
    path.write_text(json.dumps(listed))
    return path


def test_one_error_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo, out, page = _zoo(tmp_path / "zoo.yaml", adapter="mpnet"), tmp_path / "m.json", tmp_path / "m.html"
    assert main(["--zoo", str(zoo), "--json", str(out), "--html", str(page)]) == 1
    rows = json.loads(out.read_text())["rows"]
    assert [(row["verdict"], row["weights"]) for row in rows] == [
        ("passed", "synthetic"),
        ("failed", "synthetic"),
    ]
    assert "the zoo says mpnet" in rows[1]["reason"]
    assert "the zoo says mpnet" in page.read_text()
    assert "the zoo says mpnet" in capsys.readouterr().out


def test_another_run_goes_on_where_the_first_one_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo, out = _zoo(tmp_path / "zoo.yaml"), tmp_path / "m.json"
    given = ["--zoo", str(zoo), "--json", str(out)]

    def once(entry: ZooEntry, folder: Path | None, stand_ins: Path) -> Row:
        if out.exists():
            raise KeyboardInterrupt
        return check_entry(entry, folder, stand_ins)

    with monkeypatch.context() as patched:
        patched.setattr(matrix, "check_entry", once)
        assert main(given) == 130
    assert "the rows so far are kept" in capsys.readouterr().err
    (first,) = json.loads(out.read_text())["rows"]
    assert main(given) == 0
    assert json.loads(out.read_text())["rows"][0] == first
    assert capsys.readouterr().err.count("measured before") == 1
    measured = out.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(matrix, "check_entry", once)
        assert main(given) == 0  # nothing is measured again
    assert out.read_bytes() == measured
    monkeypatch.setattr(key, "code_digest", lambda folder: "0" * 64)
    assert main([*given, "--only", "*small*"]) == 0
    assert json.loads(out.read_text())["rows"][0]["key"] != first["key"]


def test_a_file_that_is_no_result_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    given = ["--zoo", str(_zoo(tmp_path / "zoo.yaml")), "--json", str(tmp_path / "notes.json")]
    assert main(given) == 2
    assert "not the result of an earlier run" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'


def test_only_the_models_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo, out = _zoo(tmp_path / "zoo.yaml"), tmp_path / "m.json"
    assert main(["--zoo", str(zoo), "--only", "*/bge-small*", "--json", str(out)]) == 0
    assert [row["repo"] for row in json.loads(out.read_text())["rows"]] == ["BAAI/bge-small-en-v1.5"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "none/*"], "no model matches 'none/*'"),
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "2", "--ray"], "Leave one out"),
        (["--full"], "Leave out the rest"),
        (["some.bundle"], "Leave out the rest"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--zoo", str(_zoo(tmp_path / "zoo.yaml")), *flags]) == 2
    assert message in capsys.readouterr().err


def test_without_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "need a BUNDLE" in capsys.readouterr().err


def test_the_page_escapes_what_it_shows(tmp_path: Path) -> None:
    entry = load_zoo(_zoo(tmp_path / "zoo.yaml", repo="a/b", adapter="<script>"))[1]
    row = check_entry(entry, None, tmp_path)
    page = render_matrix(Matrix(bei_version="0", target="onnxruntime-cpu", rows=(row,)))
    assert "not in the zoo" in page
    assert "<script>" not in page
