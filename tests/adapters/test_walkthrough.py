"""The code of adapters/README.md runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from bei.adapters.base import Adapter, HfConfig
from bei.adapters.head import Head
from bei.compiler.lowering.torch_ops import run_torch
from bei.compiler.weights import resolve, strip_prefix
from tests.adapters.cases_encoders import DISTIL
from tests.adapters.tiny import batch, enliven, stored_tensors

PAGE = Path(__file__).parents[2] / "adapters" / "README.md"


def adapter_of_the_page() -> Adapter:
    """All Python blocks, executed one after the other as one file."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), names)  # noqa: S102
    adapter = names["DISTILBERT"]
    assert isinstance(adapter, Adapter)
    return adapter


def test_the_walkthrough_gives_what_transformers_gives(tmp_path: Path) -> None:
    adapter = adapter_of_the_page()
    config = DistilBertConfig(**DISTIL)
    config.num_labels = 3
    model: Any = enliven(DistilBertForSequenceClassification(config))
    model.save_pretrained(tmp_path)
    hf = HfConfig(model.config.to_dict())
    cfg = adapter.config(hf)
    assert adapter.sequence_head is not None
    found = adapter.sequence_head(hf)
    head = Head(task="classify", pooling=found.pooling, steps=found.steps)
    tensors = strip_prefix("distilbert.", stored_tensors(tmp_path))
    weights = resolve("page", (*adapter.weights(cfg), *found.weights), tensors, tmp_path, adapter.ignore)

    ids, mask = batch((1, 7, 12), cfg.vocab)
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(run_torch(cfg, head, weights, ids, mask), expected, atol=1e-5, rtol=1e-5)
