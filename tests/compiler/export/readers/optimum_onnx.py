"""Optimum over the plain ONNX folder: a JSON list of [folder, class, texts] → the outputs by name."""

import json
import sys
from typing import Any

import optimum.onnxruntime
from transformers import AutoTokenizer


def answer(folder: str, kind: str, texts: list[Any]) -> Any:
    """Every output of the graph."""
    model = getattr(optimum.onnxruntime, kind).from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given = list(map(list, zip(*texts, strict=True))) if isinstance(texts[0], list) else [texts]
    tokens = tokenizer(*given, padding=True, truncation=True, return_tensors="pt")
    return {name: value.tolist() for name, value in model(**tokens).items()}


print(json.dumps([answer(*job) for job in json.loads(sys.argv[1])]))
