"""The inputs of a request, as the contracts allow them."""

from collections.abc import Sequence, Sized
from typing import Any

from bei.errors import EmptyInput, InputError
from bei.runtime.tokenizer import Input

MAX_ITEMS = 2048
"""OpenAI's limit on the inputs of one request; ours on every route."""

Given = str | list[str | int | list[int]]
"""A text, a list of texts, token ids (one document), or a list of token-id lists."""


def documents(given: Given, field: str) -> list[Input]:
    """One input a text, or a list of token ids. Raises InputError naming ``field``."""
    if isinstance(given, str):
        given = [given]
    numbers = sum(isinstance(item, int) for item in given)
    inputs: list[Any] = [given] if given and numbers == len(given) else given
    if numbers and inputs is given:
        raise InputError(
            f"{field}: mixes token ids with other items. Send texts, one list of ids, or lists of ids."
        )
    check_count(inputs, field)
    check_texts(inputs, field)
    return inputs


def check_count(items: Sized, field: str) -> None:
    if not len(items):
        raise EmptyInput(f"{field}: cannot be empty. Send at least one.")
    if len(items) > MAX_ITEMS:
        raise InputError(f"{field}: {len(items)} items, at most {MAX_ITEMS} fit in one request.")


def check_texts(texts: Sequence[object], field: str) -> None:
    for index, text in enumerate(texts):
        if text == "":
            raise EmptyInput(f"{field} {index}: cannot be empty. Leave it out, or send a space.")
