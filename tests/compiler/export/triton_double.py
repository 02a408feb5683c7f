"""Triton without Triton: its configuration format by its own descriptor, and the part of the Python backend's module
that a model uses."""

import ast
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # type: ignore[import-untyped]

from tests.consumers import FOLDER

PUBLISHED = FOLDER / "tritonclient" / "grpc" / "model_config_pb2.py"
"""Triton's model_config.proto, compiled, as its client ships it."""


def read_config(file: Path) -> Any:
    """A ModelConfig message; an unknown field or a value of the wrong type is an error."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(_descriptor()))
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))
    return text_format.Parse(file.read_text(), kind())


def _descriptor() -> bytes:
    """The one literal in the compiled file that is the format; nothing of the file is executed."""
    for node in ast.walk(ast.parse(PUBLISHED.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            found = ast.literal_eval(node.args[0])
            assert isinstance(found, bytes)
            return found
    raise AssertionError(f"{PUBLISHED} holds no descriptor")


class Tensor:
    def __init__(self, name: str, data: Any) -> None:
        self._name, self._data = name, data

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._data


class Request:
    """BYTES inputs [B, 1], as a client sends them."""

    def __init__(self, inputs: Mapping[str, list[str | bytes]], **parameters: str) -> None:
        raw = {
            name: [t.encode() if isinstance(t, str) else t for t in texts] for name, texts in inputs.items()
        }
        self.tensors = {n: Tensor(n, np.array(texts, object).reshape(-1, 1)) for n, texts in raw.items()}
        self._parameters = parameters

    def parameters(self) -> str:
        return json.dumps(self._parameters) if self._parameters else ""


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class TritonError(Exception):
    pass


@contextmanager
def tokenizer_step(model: Path) -> Iterator[Any]:
    """The step's model.py, run as it was written, in the folder ``model`` of a repository."""
    name = "triton_python_backend_utils"
    sys.modules[name] = SimpleNamespace(  # type: ignore[assignment]
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=TritonError,
        get_input_tensor_by_name=lambda request, tensor: request.tensors[tensor],
    )
    try:
        spec = spec_from_file_location("exported_step", model / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        step = module.TritonPythonModel()
        step.initialize({"model_repository": str(model), "model_version": "1"})
        yield step
    finally:
        del sys.modules[name]
