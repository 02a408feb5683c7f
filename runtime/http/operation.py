"""What a route is: the one description that the router, the error handlers and the OpenAPI document are made from."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bei.runtime.http.errors import (
    BACKEND,
    EMPTY,
    INVALID,
    LATE,
    MEDIA_TYPE,
    NOT_FOUND,
    OVERLOADED,
    SYNTAX,
    TOO_LARGE,
    UNAUTHORIZED,
    UNHEALTHY,
    WRONG_TASK,
    Family,
    Kind,
    openai_error,
)
from bei.runtime.http.served import Served
from bei.runtime.http.settings import Settings
from bei.runtime.service import Service, Work

OF_ALL = (UNAUTHORIZED, BACKEND)
OF_WORK = (
    *OF_ALL,
    *(EMPTY, INVALID, SYNTAX, NOT_FOUND, WRONG_TASK, LATE, TOO_LARGE, MEDIA_TYPE, OVERLOADED, UNHEALTHY),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What a handler knows beside the body."""

    served: Served
    settings: Settings
    path_params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """``content`` is anything msgspec encodes, arrays included (None: an empty body); ``numbers`` counts what it holds
    beyond the small, so that a big one is written outside the event loop. ``rows`` [n, d] are the bytes for clients that
    ask for the numbers alone, of type ``rows_dtype``. ``service`` and ``work`` are reported in headers.
    """

    content: Any = None
    numbers: int = 0
    rows: npt.NDArray[np.generic] | None = None
    rows_dtype: str = ""
    service: Service | None = None
    work: Work | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """``handle`` takes the call and the body, decoded as ``body`` (None: a GET without one), and answers with ``gives``,
    or one of a tuple (``gives_rows``: or with the numbers alone). ``may_fail`` adds to the failures that all such
    operations share."""

    name: str
    paths: tuple[str, ...]
    summary: str
    handle: Callable[[Call, Any], Awaitable[Answer]]
    tag: str
    body: Any = None
    gives: Any = None
    gives_rows: bool = False
    family: Family = openai_error
    may_fail: tuple[Kind, ...] = ()

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    @property
    def failures(self) -> tuple[Kind, ...]:
        """What beside the answer itself may come."""
        return (*(OF_ALL if self.body is None else OF_WORK), *self.may_fail)
