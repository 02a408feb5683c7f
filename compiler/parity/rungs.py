"""The rung of proof below an engine: the encoder in torch, with the engine's precision, against the reference.

It runs anywhere, so it says how far an engine that cannot run here is proven, and, where one fails, whether and in which
layer its precision is to blame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.checkpoint import open_checkpoint
from bei.compiler.checkpoint.load import load_model
from bei.compiler.parity.compare import compare
from bei.compiler.parity.gate import Precision, gate, precision_of
from bei.compiler.parity.layers import DRIFT, Drift, compare_layers
from bei.compiler.parity.reference import LayerReference
from bei.compiler.parity.report import EngineReport, Rung, judge
from bei.compiler.parity.run import Expected
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight
from bei.manifest import EngineRecord, Task
from bei.runtime.executor import Row

if TYPE_CHECKING:
    from bei.compiler.lowering.torch_ops import Tensors

F32 = npt.NDArray[np.float32]

TEXTS = 24
"""Texts of the set that a rung tries, evenly chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchEncoder:
    """A checkpoint's encoder and head, run in torch one text at a time with an engine's ``precision``: values rounded
    as it stores them, the residual stream in the narrowest type that the policy allows."""

    cfg: EncoderConfig
    head: Head
    weights: Mapping[str, Weight]
    precision: Precision
    policy: Policy = PLAIN
    tensors: "Tensors | None" = None

    def output(self, row: Row) -> F32:
        """The head's output: [d], or [n, C] a token."""
        return self._run(row, None)

    def hidden_states(self, row: Row) -> dict[str, F32]:
        """[n, D] by the names that `bei.compiler.parity.reference.LayerReference` uses."""
        names = state_sites(self.cfg)
        found: dict[str, F32] = {}

        def see(site: str, x: Any) -> None:
            if site in names:
                name = names[site]
                scale = 1.0 if name == "output" else self.policy.stream
                found[name] = (x[0] / scale).numpy()

        self._run(row, see)
        return found

    def _run(self, row: Row, probe: Any) -> F32:
        import torch

        from bei.compiler.lowering.torch_ops import engine_storage, run_torch

        body = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]
        ids, types = (torch.from_numpy(x[None].astype(np.int64)) for x in (row.ids, row.types))
        out = run_torch(
            self.cfg,
            self.head,
            self.weights,
            ids,
            torch.ones_like(ids),
            types=types,
            prompt=torch.tensor([row.prompt_tokens]),
            storage=engine_storage(self.cfg, body, self.policy),
            policy=self.policy,
            probe=probe,
            tensors=self.tensors,
        )
        return np.asarray(out[0].numpy(), np.float32)


def state_sites(cfg: EncoderConfig) -> dict[str, str]:
    """Probed site → name of the hidden state it is: the stream after the embeddings and after each layer."""
    n = len(cfg.layers)
    after = ["embed", *(f"layers.{i}" for i in range(n))]
    if cfg.placement == "post":
        sites = {"embed.norm": "embed", **{f"layers.{i}.ffn_norm": f"layers.{i}" for i in range(n)}}
    else:
        sites = {"embed.norm": "embed"} if cfg.embed_norm else {}
        sites |= {
            f"layers.{i}.attn_norm.in": after[i] for i, layer in enumerate(cfg.layers) if layer.attn_norm
        }
    last = "final_norm" if cfg.final_norm else f"layers.{n - 1}.ffn_norm"
    return {**sites, last: "output"}


def load_encoder(
    checkpoint: Path, precision: str, policy: Policy = PLAIN, task: Task | None = None
) -> TorchEncoder:
    """The encoder of the checkpoint in ``checkpoint``, without its head where the ``task`` is token embeddings. Raises
    what reading a checkpoint raises."""
    from bei.compiler.lowering.torch_ops import Tensors

    opened = open_checkpoint(str(checkpoint))
    loaded = load_model(opened, adapter_for(opened.config))
    if task == "embed-tokens":
        loaded = loaded.of_tokens(opened.name)
    return TorchEncoder(
        cfg=loaded.cfg,
        head=loaded.head,
        weights=loaded.weights,
        precision=precision_of(precision),
        policy=policy,
        tensors=Tensors(),
    )


def with_rung(
    report: EngineReport, record: EngineRecord, encoder: TorchEncoder, rows: Sequence[Row], expected: Expected
) -> EngineReport:
    """``report`` with the torch rung, and the layer-by-layer comparison on the text that is furthest off there.

    ``rows`` are the expected samples as the bundle's tokenizer gives them.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(TEXTS, len(rows))).round().astype(int)).tolist()
    ours = [encoder.output(rows[i]) for i in chosen]
    samples, theirs = [expected.samples[i] for i in chosen], [expected.outputs[i] for i in chosen]
    task = expected.reference.task
    multi_label = encoder.head.problem_type == "multi_label_classification"
    comparison = compare(task, ours, theirs, samples, multi_label=multi_label)
    measures, verdict = judge(comparison.values, gate(task, record.precision))
    name = f"{encoder.precision} storage in torch against the reference, {len(chosen)} texts"
    worst = chosen[int(np.argmax(np.nan_to_num(comparison.distance, nan=np.inf)))]
    return msgspec.structs.replace(
        report,
        rungs=(*report.rungs, Rung(name=name, verdict=verdict, measures=measures)),
        drift=_drift(encoder, rows[worst], expected, worst),
    )


def _drift(encoder: TorchEncoder, row: Row, expected: Expected, index: int) -> Drift | None:
    """None where the reference does not show its layers, or reads the text as other tokens: layers are not to blame."""
    if not hasattr(expected.reference, "hidden_states"):
        return None
    theirs = cast(LayerReference, expected.reference).hidden_states(expected.samples[index])
    if len(theirs["embed"]) != len(row.ids):
        return None
    return compare_layers(encoder.hidden_states(row), theirs, DRIFT[encoder.precision])
