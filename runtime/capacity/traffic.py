"""What is asked of a service: how many requests come, how many texts are in one, how long the texts are."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bei.errors import InputError

FORMS = "lognormal:MEAN,SIGMA, uniform:LOW,HIGH, or a file with a text or a number of tokens a line"

Numbers = npt.NDArray[np.int64]
CountTokens = Callable[[Sequence[str]], Sequence[int]]


class Distribution(Protocol):
    """Of whole numbers, at least 1."""

    def sample(self, rng: np.random.Generator, count: int) -> Numbers:
        """So many of them, independent."""

    @property
    def text(self) -> str:
        """As the user may write it."""


@dataclass(frozen=True, slots=True)
class Lognormal:
    """``mean`` of the numbers themselves, ``sigma`` of their logarithms."""

    mean: float
    sigma: float

    def sample(self, rng: np.random.Generator, count: int) -> Numbers:
        drawn = rng.lognormal(math.log(self.mean) - self.sigma**2 / 2, self.sigma, count)
        return np.maximum(1, drawn.round()).astype(np.int64)

    @property
    def text(self) -> str:
        return f"lognormal:{self.mean:g},{self.sigma:g}"


@dataclass(frozen=True, slots=True)
class Uniform:
    """``low`` to ``high``, both included."""

    low: int
    high: int

    def sample(self, rng: np.random.Generator, count: int) -> Numbers:
        return rng.integers(self.low, self.high + 1, count)

    @property
    def text(self) -> str:
        return f"uniform:{self.low},{self.high}"


@dataclass(frozen=True, slots=True)
class Empirical:
    """Any of ``values``, equally likely."""

    values: Numbers
    text: str

    def sample(self, rng: np.random.Generator, count: int) -> Numbers:
        return rng.choice(self.values, count)


class Arrival(NamedTuple):
    """A request: when it comes, in seconds, and the tokens of its texts."""

    at: float
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """``rate`` requests a second, at random moments (Poisson); texts longer than ``max_length`` are cut to it."""

    rate: float
    lengths: Distribution
    texts: Distribution
    max_length: int

    def arrivals(self, count: int, *, share: float, seed: int) -> list[Arrival]:
        """``count`` requests at a random ``share`` of the rate. The same texts for every share."""
        gaps, sizes = np.random.default_rng(seed).spawn(2)
        at = np.cumsum(gaps.exponential(1 / (self.rate * share), count))
        texts = self.texts.sample(sizes, count)
        lengths = np.minimum(self.lengths.sample(sizes, int(texts.sum())), self.max_length)
        return [
            Arrival(float(moment), tuple(part.tolist()))
            for moment, part in zip(at, np.split(lengths, np.cumsum(texts)[:-1]), strict=True)
        ]

    def cut(self, *, seed: int) -> float:
        """The share of texts that is longer than the model takes."""
        return float((self.lengths.sample(np.random.default_rng(seed), 10_000) > self.max_length).mean())


def parse_lengths(text: str, count_tokens: CountTokens) -> Distribution:
    """``--length-distribution``. Raises InputError."""
    if ":" in text and not Path(text).is_file():
        return _parsed("--length-distribution", text)
    return _from_file("--length-distribution", Path(text), count_tokens)


def parse_texts(text: str) -> Distribution:
    """``--texts-per-request``: a number or a distribution. Raises InputError."""
    if text.isdecimal():
        return _uniform("--texts-per-request", text, [text, text])
    return _parsed("--texts-per-request", text)


def _parsed(option: str, text: str) -> Distribution:
    kind, _, rest = text.partition(":")
    values = rest.split(",")
    if kind == "uniform":
        return _uniform(option, text, values)
    if kind != "lognormal" or len(values) != 2:
        raise InputError(f"{option} {text!r}: not a distribution. Give {FORMS}.")
    mean, sigma = (_number(option, text, value) for value in values)
    if not (mean >= 1 and 0 <= sigma <= 5):
        raise InputError(f"{option} {text!r}: need a mean of at least 1 and a sigma of 0 … 5.")
    return Lognormal(mean, sigma)


def _uniform(option: str, text: str, values: Sequence[str]) -> Uniform:
    if len(values) != 2 or not all(value.isdecimal() for value in values):
        raise InputError(f"{option} {text!r}: need two whole numbers, as in uniform:10,200.")
    low, high = map(int, values)
    if not 1 <= low <= high:
        raise InputError(f"{option} {text!r}: need 1 ≤ low ≤ high.")
    return Uniform(low, high)


def _number(option: str, text: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{option} {text!r}: {value!r} is not a number.")
    return found


def _from_file(option: str, path: Path, count_tokens: CountTokens) -> Distribution:
    """Lengths where every line is a whole number, else texts."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"{option} {str(path)!r}: no such file. Give {FORMS}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option} {path}: cannot be read ({error}).") from None
    if not lines:
        raise InputError(f"{option} {path}: holds no lines. Give a text or a number of tokens a line.")
    plain = all(line.strip().isdecimal() for line in lines)
    values = np.array([int(line) for line in lines] if plain else count_tokens(lines), np.int64)
    if values.min() < 1:
        raise InputError(f"{option} {path}: line {int(values.argmin()) + 1} has no tokens (need at least 1).")
    kind = "numbers" if plain else "texts"
    return Empirical(values, f"{path.name} ({len(values):,} {kind}, {values.mean():.0f} tokens on average)")
