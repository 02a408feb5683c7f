"""Which prompt goes before a text."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bei.errors import InputError
from bei.manifest import Manifest
from bei.runtime.tokenizer import Input

INPUT_TYPES = {
    "query": ("query", "search_query"),
    "search_query": ("search_query", "query"),
    "document": ("document", "passage", "corpus", "search_document"),
    "passage": ("passage", "document", "corpus", "search_document"),
    "search_document": ("search_document", "document", "passage", "corpus"),
}
"""An API's ``input_type`` → prompt names to look for, in order (sentence-transformers' encode_query/encode_document)."""


def resolve_prompt(
    manifest: Manifest,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    input_type: str | None = None,
) -> str | None:
    """The text to put first: ``prompt``, else the bundle's of that name, else for the input type, else its default.

    An input type that the bundle has no prompt for changes nothing. Raises InputError for an unknown name.
    """
    if prompt is not None:
        return prompt
    if prompt_name is not None:
        if prompt_name not in manifest.prompts:
            have = ", ".join(sorted(manifest.prompts)) or "none"
            raise InputError(f"prompt_name: {prompt_name!r} is unknown; {manifest.name} has {have}.")
        return manifest.prompts[prompt_name]
    if input_type is not None:
        for name in INPUT_TYPES.get(input_type, (input_type,)):
            if name in manifest.prompts:
                return manifest.prompts[name]
    return manifest.prompts.get(manifest.default_prompt) if manifest.default_prompt is not None else None


class PromptFile(msgspec.Struct, frozen=True, kw_only=True):
    """What sentence-transformers' config file says of prompts; whatever else is in it does not matter here."""

    prompts: dict[str, str]
    default_prompt_name: str | None = None


def read_prompts(file: Path) -> PromptFile:
    """Raises InputError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=PromptFile)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}).") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f'{file}: holds no prompts ({error}). Need {{"prompts": {{NAME: TEXT, …}}}}, and "default_prompt_name" if one '
            "of them goes before every text."
        ) from None


def with_prompts(manifest: Manifest, prompts: Mapping[str, str], default: str | None = None) -> Manifest:
    """The manifest with ``prompts`` beside its own, before those of the same name, and with another ``default`` of them.

    Raises InputError for a default that is none of them.
    """
    found = {**manifest.prompts, **prompts}
    if default is not None and default not in found:
        have = ", ".join(sorted(found)) or "none"
        raise InputError(f"default_prompt: {default!r} is unknown; {manifest.name} has {have}.")
    return msgspec.structs.replace(
        manifest, prompts=found, default_prompt=manifest.default_prompt if default is None else default
    )


def check_promptable(inputs: Sequence[Input], prompt: str | None) -> None:
    """Raise InputError when a ``prompt`` that was asked for meets token ids, which take none."""
    if not prompt:
        return
    for index, item in enumerate(inputs):
        if isinstance(item, list | tuple | np.ndarray) and not any(
            isinstance(part, str) for part in item[:1]
        ):
            raise InputError(
                f"input {index}: token ids are used exactly as they are, a prompt cannot go before them. "
                "Send the text, or no prompt and no input_type."
            )
