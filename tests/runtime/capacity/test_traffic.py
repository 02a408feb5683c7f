"""Distributions: what they draw, and what is refused."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bei.errors import InputError
from bei.runtime.capacity.traffic import Traffic, Uniform, parse_lengths, parse_texts


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) + 2 for text in texts]


def test_a_lognormal_has_the_mean_and_sigma_that_were_asked_for() -> None:
    drawn = parse_lengths("lognormal:200,0.75", words).sample(np.random.default_rng(0), 100_000)
    assert drawn.mean() == pytest.approx(200, rel=0.02)
    assert np.log(drawn).std() == pytest.approx(0.75, rel=0.02)
    assert drawn.min() >= 1


def test_a_uniform_includes_both_ends() -> None:
    drawn = parse_lengths("uniform:3,5", words).sample(np.random.default_rng(0), 1000)
    assert sorted(set(drawn.tolist())) == [3, 4, 5]
    assert set(parse_texts("4").sample(np.random.default_rng(0), 10).tolist()) == {4}


def test_a_file_of_numbers_and_a_file_of_texts(tmp_path: Path) -> None:
    (tmp_path / "n.txt").write_text("5\n7\n\n7\n")
    (tmp_path / "t.txt").write_text("one text\nanother longer text\n")
    numbers = parse_lengths(str(tmp_path / "n.txt"), words)
    assert sorted(set(numbers.sample(np.random.default_rng(0), 200).tolist())) == [5, 7]
    texts = parse_lengths(str(tmp_path / "t.txt"), words)
    assert sorted(set(texts.sample(np.random.default_rng(0), 200).tolist())) == [4, 5]
    assert "2 texts" in texts.text and "3 numbers" in numbers.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("normal:3,4", "not a distribution"),
        ("lognormal:67", "not a distribution"),
        ("lognormal:sixty,1", "'sixty' is not a number"),
        ("lognormal:nan,1", "'nan' is not a number"),
        ("lognormal:0.5,1", "need a mean of at least 1"),
        ("lognormal:10,9", "sigma of 0 … 5"),
        ("uniform:5", "need two whole numbers"),
        ("uniform:9,3", "need 1 ≤ low ≤ high"),
        ("uniform:0,3", "need 1 ≤ low ≤ high"),
        ("nowhere.txt", "no such file"),
    ],
)
def test_what_is_no_distribution_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse_lengths(text, words)


def test_files_that_hold_no_lengths_are_refused(tmp_path: Path) -> None:
    empty, zero, binary = tmp_path / "empty", tmp_path / "zero", tmp_path / "binary"
    empty.write_text("\n \n")
    zero.write_text("4\n0\n")
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="holds no lines"):
        parse_lengths(str(empty), words)
    with pytest.raises(InputError, match="line 2 has no tokens"):
        parse_lengths(str(zero), words)
    with pytest.raises(InputError, match="cannot be read"):
        parse_lengths(str(binary), words)
    with pytest.raises(InputError, match="--texts-per-request '0'"):
        parse_texts("0")


def traffic(**changes: object) -> Traffic:
    fields = {"rate": 100.0, "lengths": Uniform(1, 40), "texts": Uniform(1, 3), "max_length": 32}
    return Traffic(**(fields | changes))  # type: ignore[arg-type]


def test_arrivals_are_poisson_at_the_share_of_the_rate() -> None:
    gaps = np.diff([one.at for one in traffic().arrivals(20_000, share=0.5, seed=1)])
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_the_seed_decides_and_texts_do_not_depend_on_the_share() -> None:
    one, same = traffic().arrivals(50, share=1, seed=3), traffic().arrivals(50, share=1, seed=3)
    other = traffic().arrivals(50, share=0.1, seed=3)
    assert one == same
    assert [each.lengths for each in one] == [each.lengths for each in other]
    assert one != traffic().arrivals(50, share=1, seed=4)


def test_long_texts_are_cut_and_counted() -> None:
    lengths = [n for one in traffic().arrivals(500, share=1, seed=0) for n in one.lengths]
    assert max(lengths) == 32
    assert traffic().cut(seed=0) == pytest.approx(8 / 40, rel=0.1)
    assert traffic(max_length=40).cut(seed=0) == 0
