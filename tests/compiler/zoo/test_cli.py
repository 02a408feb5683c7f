"""bei-zoo as a user meets it."""

import json
from pathlib import Path

import pytest

from bei.compiler.zoo.cli import main
from bei.compiler.zoo.fact_files import load_facts


def test_list_prints_every_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(load_facts())
    assert "6 layers  F32   90.9 MB" in lines[0]


def test_fixture_writes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    assert main(["fixture", "jinaai/jina-embeddings-v2-small-en", "--out", str(out), "--layers", "all"]) == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 4
    assert "4 of 4 layers, hidden size 128, 66 tensors" in capsys.readouterr().out


def test_fixture_takes_a_revision(tmp_path: Path) -> None:
    out = tmp_path / "x"
    assert main(["fixture", "voyageai/voyage-4-nano", "--revision", "refs/pr/5", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["is_causal"] is False
    assert (out / "2_Dense" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "no/such: not in the zoo."),
        (["BAAI/bge-m3", "--layers", "99"], "99 layers, need 1 to 24."),
        (["BAAI/bge-m3", "--revision", "v2"], "no facts about revision 'v2' (there are: none)."),
    ],
)
def test_what_is_not_usable_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["fixture", *arguments, "--out", str(tmp_path / "x")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert captured.out == "" and not any(tmp_path.iterdir())


@pytest.mark.parametrize("layers", ["0", "many", "-1"])
def test_layers_must_be_a_number_or_all(layers: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fixture", "BAAI/bge-m3", "--out", str(tmp_path / "x"), "--layers", layers])
    assert ended.value.code == 2
