"""Every architecture's tiny model as files, so that a GPU machine needs neither transformers nor its newest classes.

python -m tests.gpu.prepared FOLDER     writes them; the tests of this folder read them from $BEI_GPU_CASES
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch

CASES = "BEI_GPU_CASES"


def write(folder: Path) -> None:
    """One folder a case: what transformers saves, and ``case.npz`` with ids, mask and the fp32 hidden states."""
    from tests.adapters.cases import CASES
    from tests.adapters.tiny import HIDDEN_STATES, batch, load, save

    from bei.compiler.lowering.torch_ops import run_torch

    for case in CASES:
        at = folder / case.name
        at.mkdir(parents=True, exist_ok=True)
        save(case, at)
        loaded = load(at)
        ids, mask = batch(case.lengths, loaded.cfg.vocab)
        expected = run_torch(loaded.cfg, HIDDEN_STATES, loaded.weights, ids, mask)
        np.savez(at / "case.npz", ids=ids.numpy(), mask=mask.numpy(), expected=expected.numpy())


def names() -> list[str]:
    """The prepared cases, none where there are none."""
    folder = os.environ.get(CASES)
    return sorted(path.parent.name for path in Path(folder).glob("*/case.npz")) if folder else []


def read(name: str) -> tuple[Path, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The model's folder; ids, mask, expected hidden states."""
    folder = Path(os.environ[CASES]) / name
    arrays = np.load(folder / "case.npz")
    ids, mask, expected = (torch.from_numpy(arrays[key]) for key in ("ids", "mask", "expected"))
    return folder, ids, mask, expected


if __name__ == "__main__":
    write(Path(sys.argv[1]))
