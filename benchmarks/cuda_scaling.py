"""The CUDA engine by size: throughput against tokens in a batch, and the time of one text against its length.

python -m benchmarks.cuda_scaling [--out h200]      measures, on a GPU
python -m benchmarks.cuda_scaling --draw h100       draws docs/images/cuda_scaling.svg from what was measured

Random weights, fp16, medians: CUDA events around a graph replay, and for one text also the host's clock around the whole
call (ids in, vector out). Measuring needs the extra cuda and PyTorch.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS, save

Line = dict[str, Any]
TOKENS = tuple(2**n for n in range(8, 17))
"""Of a batch, in texts of 128."""
LENGTHS = {
    "minilm-l6": (8, 16, 32, 64, 128, 256, 512),
    "bert-base": (8, 16, 32, 64, 128, 256, 512),
    "modernbert-base": (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
}
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "cuda_scaling.svg"


def measure() -> Iterator[Line]:
    """A line a batch size and a text length, of every model."""
    from benchmarks.cubins import build
    from benchmarks.cuda_engine import Timed
    from benchmarks.cuda_shapes import CONFIGS, EMBED, random_weights

    from bei.compiler.lowering.cuda_options import CudaOptions

    for model, lengths in LENGTHS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            weights = random_weights(CONFIGS[model], folder)
            timed = Timed(build(CONFIGS[model], EMBED, weights, CudaOptions(sm=90)), folder)
            for tokens in TOKENS:
                ms = timed.device_ms([128] * (tokens // 128))
                yield {
                    "model": model, "texts": tokens // 128, "tokens": tokens, "ms": round(ms, 3),
                    "M tokens/s": round(tokens / ms / 1e3, 2),
                }  # fmt: skip
            for length in lengths:
                yield {
                    "model": model, "texts": 1, "tokens": length, "ms": round(timed.device_ms([length]), 3),
                    "whole call ms": round(timed.call_ms([length]), 3),
                }  # fmt: skip
            timed.engine.close()


# --- the drawing: two plots over powers of two, one line a model

WIDTH, HEIGHT, LEFT, TOP, SIDE = 860, 330, 60, 34, 350
COLOURS = {"minilm-l6": "#0f766e", "bert-base": "#b45309", "modernbert-base": "#4338ca"}
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#57606a}.name{font-weight:600}line{stroke:#d0d7de}"
    "polyline{fill:none;stroke-width:2}rect{fill:#fff}"
)


def draw(lines: Sequence[Line], what: str) -> str:
    """An SVG that stands by itself."""
    batches = [line for line in lines if "M tokens/s" in line]
    single = [line for line in lines if "M tokens/s" not in line]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f'<title>{what}</title><style>{STYLE}</style><rect width="{WIDTH}" height="{HEIGHT}"/>',
        *_plot(LEFT, batches, "M tokens/s", "million tokens a second, by tokens in a batch"),
        *_plot(LEFT + SIDE + 80, single, "ms", "milliseconds of one text, by its tokens"),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _plot(left: int, lines: Sequence[Line], key: str, title: str) -> Iterator[str]:
    """Both axes logarithmic."""
    width, height = SIDE, HEIGHT - TOP - 50
    xs = [math.log2(line["tokens"]) for line in lines]
    ys = [math.log10(line[key]) for line in lines]
    x0, x1, y0, y1 = min(xs), max(xs), math.floor(min(ys)), math.ceil(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * width, TOP + height - (y - y0) / (y1 - y0) * height

    yield f'<text x="{left}" y="{TOP - 14}" class="name">{title}</text>'
    for power in range(y0, y1 + 1):
        _, y = at(x0, power)
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{left + width}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
    for power in range(int(x0), int(x1) + 1, 2):
        x, _ = at(power, y0)
        yield f'<text x="{x:.1f}" y="{TOP + height + 18}" text-anchor="middle">{_short(2**power)}</text>'
    for number, (model, colour) in enumerate(COLOURS.items()):
        own = [line for line in lines if line["model"] == model]
        points = [at(math.log2(line["tokens"]), math.log10(line[key])) for line in own]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" stroke="{colour}"/>'
        for (x, y), line in zip(points, own, strict=True):
            said = f"{model}, {line['tokens']} tokens: {line[key]} {key}"
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"><title>{said}</title></circle>'
        place = TOP + height + 38
        yield (
            f'<text x="{left + 115 * number}" y="{place}" style="fill:{colour}" class="name">{model}</text>'
        )


def _short(n: int) -> str:
    return f"{n // 1024} k" if n >= 1024 else str(n)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="h200")
    parser.add_argument("--draw", metavar="RESULTS")
    args = parser.parse_args()
    if args.draw is not None:
        facts = json.loads((RESULTS / args.draw / "cuda_scaling.json").read_text())
        IMAGE.write_text(draw(facts["rows"], facts["what"]))
        return
    import torch

    lines: list[Line] = []
    for line in measure():
        lines.append(line)
        print(line, flush=True)
    save(f"{args.out}/cuda_scaling", f"The CUDA engine by size, fp16, {torch.cuda.get_device_name()}", lines)


if __name__ == "__main__":
    main()
