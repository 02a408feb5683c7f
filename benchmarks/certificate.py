"""A certificate completed where the GPU is: `bei-parity` on a bundle that another machine compiled, and the table it gives.

python -m benchmarks.certificate BUNDLE [--out h200]

The bundle is changed in place, as `bei-parity BUNDLE` does it; afterwards it must load without --allow-unverified. Needs the extra
parity and what the bundle's engines need.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.record import Row, save

import bei
from bei.compiler.parity import cli
from bei.compiler.parity.certificate import REPORT_FILE
from bei.compiler.parity.numbers import bound, number
from bei.compiler.parity.report import EngineReport, ParityReport, decode_report
from bei.runtime.bundle import read_bundle

States = dict[str, tuple[str, str]]


def states(bundle: Path) -> States:
    """Status and verdict of every engine."""
    manifest = read_bundle(bundle).manifest
    verdicts = manifest.parity.verdicts
    return {engine.target: (engine.status, verdicts[engine.target]) for engine in manifest.engines}


def table(report: ParityReport, before: States, after: States) -> list[Row]:
    """A line a fact and a measure, a column an engine."""
    engines = {engine.target: engine for engine in report.engines}
    facts = {"status": 0, "verdict": 1}
    rows: list[Row] = [
        {"": fact} | {t: f"{before[t][at]} → {after[t][at]}" for t in engines} for fact, at in facts.items()
    ]
    rows.append(
        {"": "device"} | {target: engine.device or engine.reason for target, engine in engines.items()}
    )
    rows.append({"": "texts"} | {target: texts_of(engine) for target, engine in engines.items()})
    meanings = {m.name: m.meaning for engine in report.engines for m in engine.measures}
    for name, meaning in meanings.items():
        rows.append({"": meaning} | {target: _held(engine, name) for target, engine in engines.items()})
    return rows


def _held(engine: EngineReport, name: str) -> str:
    """A measure of an engine, beside what its precision needs."""
    found = next((measure for measure in engine.measures if measure.name == name), None)
    needed = bound(found.threshold) if found else ""
    return f"{number(engine.value(name))} ({needed})" if needed else number(engine.value(name))


def texts_of(engine: EngineReport) -> str:
    t = engine.texts
    return "" if t is None else f"{t.count} {t.source}, {t.tokens} tokens, longest {t.longest}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", default="h200")
    args = parser.parse_args()
    before = states(args.bundle)
    code = cli.main([str(args.bundle)])
    path = args.bundle / REPORT_FILE
    report = decode_report(path.read_bytes(), str(path))
    reference = next(engine.reference for engine in report.engines if engine.reference)
    with bei.load(args.bundle) as model:
        title = f"{report.model}: certificate completed by bei-parity, exit code {code}; held to {reference.name}; "
        title += f"then loads with {model.target}"
        assert model.encode(["a first text"]).ndim == 2
    save(f"{args.out}/certificate", title, table(report, before, states(args.bundle)))
    sys.exit(code)


if __name__ == "__main__":
    main()
