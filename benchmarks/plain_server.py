"""What people write first: sentence-transformers behind FastAPI. The peer of `benchmarks.serving`.

python benchmarks/plain_server.py MODEL PORT THREADS
"""

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Body(BaseModel):
    """OpenAI's embedding request, as far as it is used here."""

    input: list[str]
    model: str = ""


def main() -> None:
    """Handlers are plain functions: FastAPI runs them in threads, as its documentation advises for blocking work."""
    path, port, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = SentenceTransformer(path, device="cpu")
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {}

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, Any]:
        vectors = model.encode(body.input)
        data = [
            {"object": "embedding", "index": index, "embedding": row.tolist()}
            for index, row in enumerate(vectors)
        ]
        return {
            "object": "list",
            "data": data,
            "model": body.model,
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }

    uvicorn.run(app, port=int(port), log_level="warning")


if __name__ == "__main__":
    main()
