"""SentenceTransformer and CrossEncoder with the ONNX back end: a JSON list of [folder, task, texts] → what each gave."""

import json
import sys
from typing import Any

import onnxruntime
from sentence_transformers import CrossEncoder, SentenceTransformer
from torch.nn import Identity


def answer(folder: str, task: str, texts: list[Any]) -> Any:
    """Vectors, or logits."""
    loading: dict[str, Any] = {"backend": "onnx", "device": "cpu", "local_files_only": True}
    if task == "embed":
        model = SentenceTransformer(folder, **loading)
        inner: Any = model[0].auto_model
        result = model.encode(texts, prompt="")
    else:
        ranker = CrossEncoder(folder, **loading)
        inner = ranker.model
        result = ranker.predict(texts, activation_fn=Identity())
    assert isinstance(inner.session, onnxruntime.InferenceSession), type(inner)
    return result.tolist()


print(json.dumps([answer(*job) for job in json.loads(sys.argv[1])]))
