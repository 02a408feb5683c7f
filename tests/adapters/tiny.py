"""A tiny random Hugging Face model, saved as its class saves it, and read back through an adapter."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from torch import Tensor, nn

from bei.adapters.base import Adapter, HfConfig
from bei.adapters.config import EncoderConfig
from bei.adapters.head import TOKENS, Head
from bei.adapters.registry import adapter_for
from bei.compiler.checkpoint.stored import StoredTensor
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU, GraphPolicy
from bei.compiler.lowering.signature import signature
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight, check_shapes, find_prefix, resolve, strip_prefix

HIDDEN_STATES = TOKENS
"""The output is the last hidden state [B, L, D]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One architecture as a two- or three-layer model: ``config`` and ``model`` are transformers classes.

    ``edit`` changes config.json as stored (spellings that the class itself does not write). ``lengths``: one token, what
    lies around a window, and the longest text.
    """

    adapter: Adapter
    name: str
    model: Callable[[], nn.Module]
    edit: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    lengths: tuple[int, ...] = (1, 7, 12, 40)


def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights large enough that attention is far from uniform and every bias and norm matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            elif "embed" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    return model.eval()


def stored_tensors(folder: Path, file: str = "model.safetensors") -> dict[str, StoredTensor]:
    """The header of a file that transformers has just written (the strict reader has tests of its own)."""
    data = (folder / file).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(
            name=name,
            file=file,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            offset=8 + size + entry["data_offsets"][0],
            nbytes=entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    adapter: Adapter
    cfg: EncoderConfig
    weights: Mapping[str, Weight]
    folder: Path


def save(case: Case, folder: Path) -> nn.Module:
    """The enlivened model, written to ``folder`` as transformers writes it, config edited where the case says so."""
    model = enliven(case.model())
    model.save_pretrained(folder)  # type: ignore[operator]
    if case.edit is not None:
        path = folder / "config.json"
        path.write_text(json.dumps(case.edit(json.loads(path.read_text()))))
    return model


def load(folder: Path, head: Head = HIDDEN_STATES) -> Loaded:
    """Through registry, adapter and weight accounting, as a compile does."""
    hf = HfConfig(json.loads((folder / "config.json").read_text()))
    adapter = adapter_for(hf)
    cfg = adapter.config(hf)
    tensors = stored_tensors(folder)
    rows = list(adapter.weights(cfg))
    probe = next(source.name for name, source in rows if name == "embed.tokens.weight")  # type: ignore[union-attr]
    tensors = strip_prefix(find_prefix(adapter.prefixes, probe, tensors), tensors)
    weights = resolve(adapter.name, rows, tensors, folder, adapter.ignore)
    needs = signature(cfg, head)
    check_shapes(adapter.name, weights, needs.needed, needs.optional)
    return Loaded(adapter=adapter, cfg=cfg, weights=weights, folder=folder)


def batch(lengths: tuple[int, ...], vocab: int, seed: int = 0, low: int = 5) -> tuple[Tensor, Tensor]:
    """ids, mask int64 [B, L], right-padded with 0; ids from ``low`` up, so that no real token is a padding id."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(low, vocab, mask.shape, generator=generator) * mask
    return ids, mask


def assert_near(ours: npt.NDArray[Any], expected: Tensor) -> None:
    """Within 1e-5: of 1, or of the largest value where that is more."""
    bound = 1e-5 * max(1.0, float(expected.abs().max()))
    np.testing.assert_allclose(ours, expected.numpy(), atol=bound, rtol=0)


def run_onnx(
    loaded: Loaded,
    ids: Tensor,
    mask: Tensor,
    *,
    head: Head = HIDDEN_STATES,
    policy: GraphPolicy = ONNXRUNTIME_CPU,
    precision: Policy = PLAIN,
    types: Tensor | None = None,
    prompt: Tensor | None = None,
) -> npt.NDArray[np.float32]:
    """The emitted graph under ONNX Runtime; weights by external reference into the checkpoint's folder."""
    graph = emit(loaded.cfg, head, loaded.weights, policy, precision)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(loaded.folder)
    )
    session = ort.InferenceSession(graph.serialize(), options, providers=["CPUExecutionProvider"])
    feeds = onnx_feeds(policy, ids, mask, types, prompt)
    (output,) = session.run(None, {name: feeds[name] for name in graph.inputs})
    return np.asarray(output)


def onnx_feeds(
    policy: GraphPolicy, ids: Tensor, mask: Tensor, types: Tensor | None, prompt: Tensor | None
) -> dict[str, npt.NDArray[Any]]:
    """Padded, or packed as `bei.runtime.packing` defines it."""
    kind = np.int64 if policy.index.name == "INT64" else np.int32
    types = torch.zeros_like(ids) if types is None else types
    prompt = torch.zeros(len(ids), dtype=torch.int64) if prompt is None else prompt
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "prompt_length": prompt}
    if policy.layout == "packed":
        slots = mask.flatten().nonzero().flatten()
        index = torch.zeros(mask.numel(), dtype=torch.int64)
        index[slots] = torch.arange(len(slots))
        feeds |= {
            "input_ids": ids.flatten()[slots],
            "token_type_ids": types.flatten()[slots],
            "unpad_index": slots,
            "pad_index": index.view_as(mask),
        }
    return {name: value.numpy().astype(kind) for name, value in feeds.items()}
