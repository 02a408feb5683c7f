"""From texts to rows: bei's tokeniser, which remembers pieces, and the same without it, on one core and on all.

python -m benchmarks.tokenize

MiniLM's tokenizer over 4,000 texts of lognormal length, of a few words (benchmarks/minilm.py) and of prose. "First time" is a
new tokeniser that has met none of these words. Variants take turns; medians.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.minilm import checkpoint, lognormal_texts, prose_texts
from benchmarks.record import save

TEXTS, TURNS, LONGEST = 4000, 5, 256
MAKERS = {"few words": lognormal_texts, "prose": prose_texts}


def measure() -> dict[str, list[float]]:
    """Microseconds a text by variant, in this process."""
    import tokenizers

    from bei.manifest import TokenizerSpec
    from bei.runtime.tokenizer import Tokenizer

    def made() -> Tokenizer:
        spec = TokenizerSpec(file="", pad_id=0, vocab_size=30522, golden=())
        return Tokenizer(tokenizers.Tokenizer.from_file(str(checkpoint() / "tokenizer.json")), spec)

    found: dict[str, list[float]] = {}
    for kind, make in MAKERS.items():
        texts = make(TEXTS)
        whole = made()
        whole._pieces = None
        again = made()
        again.encode(texts, max_length=LONGEST)
        for _ in range(TURNS):
            for variant, tokenizer in (("whole texts", whole), ("first time", made()), ("again", again)):
                start = time.perf_counter()
                tokenizer.encode(texts, max_length=LONGEST)
                took = 1e6 * (time.perf_counter() - start) / TEXTS
                found.setdefault(f"{kind}: {variant}", []).append(took)
    return found


def main() -> None:
    rows: list[dict[str, Any]] = []
    for cores in (1, len(os.sched_getaffinity(0))):
        command = [sys.executable, "-c", "import benchmarks.tokenize as t; print(t.json.dumps(t.measure()))"]
        parallel = {"TOKENIZERS_PARALLELISM": "false" if cores == 1 else "true"}
        done = subprocess.run(command, env=os.environ | parallel, check=True, capture_output=True, text=True)
        found: dict[str, list[float]] = json.loads(done.stdout)
        rows.append(
            {"library's threads": cores} | {k: round(statistics.median(v), 1) for k, v in found.items()}
        )
    save("tokenize", f"Microseconds a text, texts to rows, MiniLM's tokenizer, {TEXTS} texts", rows)


if __name__ == "__main__":
    main()
