"""What every format of input can do: say where its rows lie, and read them from any such place on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bei.runtime.corpus.rows import Cells, IdType, Unreadable


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The columns that hold the texts, and the one that holds the ids, if any."""

    columns: tuple[str, ...]
    id_column: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order of a row's cells."""
        return self.columns if self.id_column is None else (*self.columns, self.id_column)

    def option(self, name: str) -> str:
        """The option that chose a column, for messages."""
        return "--id-column" if name == self.id_column else "--column"


class Run(NamedTuple):
    """``rows`` that follow one another, about ``nbytes`` of text in all. ``offset`` is where reading may begin, in the
    format's own terms."""

    rows: int
    nbytes: int
    offset: int


class Reader(Protocol):
    """One input file. Its methods raise InputError when the file turns out to be damaged."""

    def check(self) -> IdType | None:
        """The id column's type, None where it is not known. Raises InputError where the file cannot hold what is
        wanted."""

    def runs(self) -> Iterator[Run]:
        """All rows of the file, without their values."""

    def rows(self, row: int, offset: int) -> Iterator[Cells | Unreadable]:
        """Values from row number ``row`` to the end; ``offset`` is that of the run which holds it."""
