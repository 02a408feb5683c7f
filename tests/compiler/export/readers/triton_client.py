"""The requests that Triton's own client sends for a list of texts and of pairs, with and without a prompt, and what it
reads out of an answer: [[body, ...], vectors]."""

import json
import sys
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput


def request(columns: dict[str, list[str]], **parameters: str) -> dict[str, Any]:
    """A KServe v2 body without binary extension."""
    inputs = []
    for name, texts in columns.items():
        inputs.append(InferInput(name, [len(texts), 1], "BYTES"))
        inputs[-1].set_data_from_numpy(
            np.array([t.encode() for t in texts], object).reshape(-1, 1), binary_data=False
        )
    outputs = [InferRequestedOutput("sentence_embedding", binary_data=False)]
    body, _ = InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, parameters=parameters or None
    )
    found: dict[str, Any] = json.loads(body)
    return found


bodies = [request(*job[:1], **job[1]) for job in json.loads(sys.argv[1])]
response = InferenceServerClient.parse_response_body(sys.argv[2].encode())
print(json.dumps([bodies, response.as_numpy("sentence_embedding").tolist()]))
