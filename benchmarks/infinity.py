"""Infinity's engine as a peer: its queue and dynamic batches over sentence-transformers, in this process, without HTTP."""

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

Embed = Callable[[Sequence[str]], npt.NDArray[np.float32]]


@contextmanager
def embedder(checkpoint: Path, batch: int, device: str = "cuda") -> Iterator[Embed]:
    """All texts are queued at once, as many clients together would; fp16 on a GPU. Needs infinity-emb and its extra torch."""
    os.environ.setdefault("INFINITY_ANONYMOUS_USAGE_STATS", "0")  # read when it is imported
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    options = EngineArgs(
        model_name_or_path=str(checkpoint),
        engine="torch",
        device=device,
        dtype="float16" if device == "cuda" else "float32",
        batch_size=batch,
        bettertransformer=False,  # left optimum, which it needs, with version 2
        model_warmup=False,
        trust_remote_code=False,
    )
    engine = AsyncEmbeddingEngine.from_args(options)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(engine.astart())

    def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors, _ = loop.run_until_complete(engine.embed(sentences=list(texts)))
        return np.stack(vectors).astype(np.float32)

    try:
        yield embed
    finally:
        loop.run_until_complete(engine.astop())
        loop.close()
