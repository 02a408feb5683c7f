"""From an open checkpoint and its adapter to the encoder's and the head's weights, every tensor accounted for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bei.adapters.base import Adapter, Derived, Source
from bei.adapters.config import EncoderConfig
from bei.adapters.head import TOKENS, Head
from bei.compiler.checkpoint.checkpoint import Checkpoint
from bei.compiler.checkpoint.head import HeadFiles, read_head
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.lowering.signature import signature
from bei.compiler.weights import Weight, check_finite, find_prefix, resolve, strip_prefix
from bei.errors import InputError, WeightMismatch

PROBE = "embed.tokens.weight"
"""The row that every adapter has; where it is stored tells the prefix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """``weights``: canonical name → Weight, of the encoder and of the whole head."""

    cfg: EncoderConfig
    head_files: HeadFiles
    weights: dict[str, Weight]

    @property
    def head(self) -> Head:
        """What follows the encoder."""
        return self.head_files.head

    def of_tokens(self, subject: str) -> "LoadedModel":
        """The encoder of an embedding model without what follows it. Raises InputError for other models."""
        if self.head.task != "embed":
            raise InputError(
                f"{subject}: made for {self.head.task!r}, only embedding models give token embeddings. "
                "Leave --token-embeddings out."
            )
        needs = signature(self.cfg, TOKENS)
        used = needs.needed | needs.optional
        return LoadedModel(
            cfg=self.cfg,
            head_files=replace(self.head_files, head=TOKENS),
            weights={name: weight for name, weight in self.weights.items() if name in used},
        )


def load_model(checkpoint: Checkpoint, adapter: Adapter, *, values: bool = True) -> LoadedModel:
    """Read configuration, head and weights; without ``values`` no weight is looked at.

    Raises WeightMismatch for tensors missing, unread, stored twice or not finite; UnsupportedConfig and
    CheckpointError for what the files say. Shapes are checked against the encoder elsewhere (`check_shapes`).
    """
    cfg = adapter.config(checkpoint.config)
    head_files = read_head(checkpoint, adapter, cfg)
    rows = (*adapter.weights(cfg), *head_files.rows)
    tensors = _without_prefix(adapter, rows, checkpoint)
    weights = resolve(adapter.name, rows, tensors, checkpoint.folder, adapter.ignore)
    weights.update(head_files.weights)
    if values:
        check_finite(checkpoint.name, weights)
    return LoadedModel(cfg=cfg, head_files=head_files, weights=weights)


def _without_prefix(
    adapter: Adapter, rows: Sequence[tuple[str, Source]], checkpoint: Checkpoint
) -> dict[str, StoredTensor]:
    probe = next(source for name, source in rows if name == PROBE)
    stored = probe.names[0] if isinstance(probe, Derived) else probe.name
    prefix = find_prefix(adapter.prefixes, stored, checkpoint.tensors)
    tensors = strip_prefix(prefix, checkpoint.tensors)
    if len(tensors) != len(checkpoint.tensors):
        twice = sorted(
            name for name in tensors if prefix + name in checkpoint.tensors and name in checkpoint.tensors
        )
        raise WeightMismatch(
            f"{checkpoint.name}: {', '.join(twice[:5])} stored both with and without the prefix {prefix!r} "
            f"({len(twice)} in all). The checkpoint is damaged, or holds two models."
        )
    return tensors
