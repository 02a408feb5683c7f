"""The tokenizer step of a Triton model repository, run by Triton's Python backend. Written by bei-export.

TEXT (and TEXT_PAIR where the model compares two texts), BYTES [B, 1], become the engine's inputs. Rows are padded to
the next length of a short list, so that Triton's dynamic batcher finds requests of equal shape to put together. A
request may choose one of the model's prompts with the parameter "prompt_name". Needs the packages tokenizers and numpy.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """What Triton looks for in this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer and the settings that lie beside this file."""
        folder = Path(args["model_repository"]) / args["model_version"]
        self.settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.special = {i for i, t in self.tokenizer.get_added_tokens_decoder().items() if t.special}

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a request that cannot be served gets an error of its own."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            prompt = self._prompt(request)
            arrays = self._arrays(self._texts(request, prompt), prompt)
        except ValueError as error:
            return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(error)))
        wanted = self.settings["outputs"]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, arrays[name]) for name in wanted])

    def _prompt(self, request: Any) -> str:
        prompts = self.settings["prompts"]
        given = json.loads(request.parameters() or "{}")
        name = given.get("prompt_name", self.settings["default_prompt"])
        if name is not None and name not in prompts:
            raise ValueError(f"prompt_name: {name!r} is unknown; there is {', '.join(prompts) or 'none'}.")
        return "" if name is None else str(prompts[name])

    def _texts(self, request: Any, prompt: str) -> list[Any]:
        columns = []
        for name in self.settings["inputs"]:
            raw = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
            columns.append([item.decode("utf-8") for item in raw])  # UnicodeDecodeError is a ValueError
        columns[0] = [prompt + text for text in columns[0]]
        return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))

    def _arrays(self, texts: list[Any], prompt: str) -> dict[str, Any]:
        """ids, mask, types [B, L]; prompt_length [B, 1]; offsets [B, L, 2] in characters."""
        rows = self.tokenizer.encode_batch(texts)
        longest = max(len(row.ids) for row in rows)
        length = min((n for n in self.settings["lengths"] if n >= longest), default=longest)
        for row in rows:
            row.pad(length, pad_id=self.settings["pad_id"])
        kind = self.settings["dtype"]
        skipped = self._prompt_tokens(prompt) if prompt else 0
        return {
            "input_ids": np.array([row.ids for row in rows], kind),
            "attention_mask": np.array([row.attention_mask for row in rows], kind),
            "token_type_ids": np.array([row.type_ids for row in rows], kind),
            "prompt_length": np.full((len(rows), 1), skipped, kind),
            "offsets": np.array([row.offsets for row in rows], np.int32),
        }

    def _prompt_tokens(self, prompt: str) -> int:
        """Leading tokens that belong to the prompt: it alone, without the special token at its end."""
        row = self.tokenizer.encode(prompt)
        ids = [i for i, real in zip(row.ids, row.attention_mask, strict=True) if real]
        return len(ids) - (ids[-1] in self.special)
