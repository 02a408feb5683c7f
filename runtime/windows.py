"""Long texts as overlapping windows, cut by the `tokenizers` library itself."""

import threading
from collections.abc import Sequence

import tokenizers

from bei.errors import InputError


class Windows:
    """A second copy of a tokenizer, made when first needed: one that may be told how to truncate.

    The library finishes every window by itself (special tokens, the offsets of its first token), so windows are cut
    there and not on finished ids. Safe to use from several threads, one at a time.
    """

    def __init__(self, library: tokenizers.Tokenizer) -> None:
        self._original = library
        self._copy: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], max_length: int, stride: int) -> list[list[tokenizers.Encoding]]:
        """Each text's windows of at most ``max_length`` tokens, special ones included, ``stride`` of which are the
        last of the window before. Raises InputError for a stride that leaves no way forward."""
        room = max_length - self._original.num_special_tokens_to_add(False)
        if not 0 <= stride < room:
            raise InputError(f"stride: got {stride}, need 0 … {room - 1} (of {max_length} tokens at a time).")
        with self._lock:
            if self._copy is None:
                self._copy = tokenizers.Tokenizer.from_str(self._original.to_str())
            self._copy.enable_truncation(max_length, stride=stride)
            encodings = self._copy.encode_batch(list(texts))
        return [[encoding, *encoding.overflowing] for encoding in encodings]
