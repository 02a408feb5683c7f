"""The special tokens that a tokenizer puts around a single text."""

from typing import Literal, NamedTuple

import numpy as np
import tokenizers

from bei.errors import InputError
from bei.runtime.executor import Ids

Side = Literal["left", "right"]


class Frame(NamedTuple):
    """What stands ``before`` a text's own ids and ``after`` them; all tokens have type 0."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def cut(self, ids: Ids, max_length: int, side: Side) -> Ids:
        """A whole text's ``ids`` with tokens missing on ``side``, the frame kept. Raises InputError where nothing else would
        be left."""
        before, after = len(self.before), len(self.after)
        room = max_length - before - after
        if room <= 0:
            raise no_room(max_length, before + after)
        last = len(ids) - after
        if side == "right":
            return np.concatenate([ids[: before + room], ids[last:]])
        return np.concatenate([ids[:before], ids[last - room :]])


def frame_of(library: tokenizers.Tokenizer) -> Frame | None:
    """None for a tokenizer that does otherwise: special tokens elsewhere, or other types."""
    try:
        whole, own = library.encode("a"), library.encode("a", add_special_tokens=False).ids
    except Exception:  # noqa: BLE001 - what the library raises where a vocabulary has neither "a" nor an unknown token
        return None
    if any(whole.type_ids) or 0 not in whole.special_tokens_mask:
        return None
    first = whole.special_tokens_mask.index(0)
    last = first + len(own)
    if whole.ids[first:last] != own or not all(whole.special_tokens_mask[last:]):
        return None
    return Frame(tuple(whole.ids[:first]), tuple(whole.ids[last:]))


def no_room(max_length: int, special: int) -> InputError:
    """The error about a limit that special tokens fill."""
    return InputError(f"max_length {max_length} leaves no room beside {special} special tokens.")
