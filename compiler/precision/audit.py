"""Range audit: how large each site's values get over calibration texts, in fp32 on the CPU.

The graph that ONNX Runtime serves is emitted once more with a maximum at every site, so an audit needs no torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import onnxruntime

from bei.adapters.config import EncoderConfig
from bei.adapters.head import Head
from bei.compiler.lowering.emit import emit
from bei.compiler.lowering.policy import ONNXRUNTIME_CPU
from bei.compiler.mapped import not_resident, regions, release_regions
from bei.compiler.precision.policy import PLAIN, Policy
from bei.compiler.weights import Weight
from bei.errors import EngineError

Ids = npt.NDArray[np.int64]
Batch = tuple[Ids, Ids, Ids]
"""ids, mask, types int64 [B, L]."""
FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime then maps the weights; handed over as tensors (`add_external_initializers`), it copies them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """``ranges``: site → largest magnitude over real tokens (padding does not count). ``outputs``: what the head gave for
    each batch, in fp32."""

    ranges: dict[str, float]
    outputs: tuple[npt.NDArray[np.float32], ...]


def audit(
    cfg: EncoderConfig,
    head: Head,
    weights: Mapping[str, Weight],
    batches: Iterable[Batch],
    policy: Policy = PLAIN,
) -> Audit:
    """Run the batches and look at every site; with a policy, as an engine would store it.

    Raises EngineError when ONNX Runtime cannot run the graph (too little memory, say).
    """
    graph = emit(cfg, head, weights, ONNXRUNTIME_CPU, policy, probed=True)
    options = _frugal()
    stored = {
        (w.folder, w.file) for w in graph.weights.values() if w.folder is not None and w.file is not None
    }
    for folder in {folder for folder, _ in stored}:
        options.add_session_config_entry(FOLDER, str(folder))  # one, the checkpoint's
    files = [folder / file for folder, file in stored]
    names = [output.name or "" for output in graph.model.graph.outputs]
    ranges = dict.fromkeys(names[1:], 0.0)
    outputs = []
    before = regions(files)
    try:
        session = onnxruntime.InferenceSession(
            graph.serialize(),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],  # it would copy every transposed weight
        )
        with not_resident(partial(release_regions, files, regions(files) - before)):
            for ids, mask, types in batches:
                feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
                feeds["prompt_length"] = np.zeros(len(ids), np.int64)
                output, *seen = session.run(names, {name: feeds[name] for name in graph.inputs})
                outputs.append(np.asarray(output, np.float32))
                for site, value in zip(ranges, seen, strict=True):
                    ranges[site] = float(np.maximum(ranges[site], np.asarray(value)))
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        raise EngineError(f"range audit: ONNX Runtime failed ({error}).") from error
    return Audit(ranges=ranges, outputs=tuple(outputs))


def _frugal() -> onnxruntime.SessionOptions:
    """A session for a few runs: weights stay in the file's mapping, where serving would make faster copies of them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options
