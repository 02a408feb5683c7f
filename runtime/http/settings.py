"""What the HTTP layer can be told; `bei-serve` fills it from its options."""

from dataclasses import dataclass

DRAIN_SECONDS = 25
"""Less than the 30 s that most orchestrators wait before they kill."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """``max_body_bytes`` counts a body both as it comes and decompressed; ``drain_seconds`` is what accepted requests
    get at the end. ``strict_model_name`` answers 404 when a request names a model that is not served, even if only one
    is. ``always_normalize`` gives every embedding unit length on OpenAI's routes too, as TEI does.
    """

    max_body_bytes: int = 32 << 20
    drain_seconds: float = DRAIN_SECONDS
    strict_model_name: bool = False
    always_normalize: bool = False
