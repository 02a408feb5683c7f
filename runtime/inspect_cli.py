"""`bei-inspect BUNDLE`: what a bundle holds, and which engine this machine will use and why."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bei.command import report_errors
from bei.cuda_plan import Plan, decode_plan
from bei.errors import BundleError
from bei.manifest import EngineRecord, Manifest, Profile
from bei.runtime.bundle import Bundle, choose_engine, open_bundle, unlisted_files, unproven
from bei.runtime.cuda.listing import lines, listed
from bei.runtime.evidence import sentences, size
from bei.runtime.executors import registry

if TYPE_CHECKING:
    from rich.console import RenderableType

EVIDENCE_SHOWN = 4


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 and one message when the bundle is not usable."""
    args = parser().parse_args(argv)
    return report_errors("bei-inspect", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    bundle = open_bundle(args.bundle, verify=args.verify)
    facts = inspect(bundle, verified=args.verify)
    plans = launch_plans(bundle) if args.steps else {}
    if args.json:
        if args.steps:
            facts["launch_plans"] = {target: listed(plan) for target, plan in plans.items()}
        print(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode())
    else:
        show(facts, plans)
    return 0


def launch_plans(bundle: Bundle) -> dict[str, Plan]:
    """Of every CUDA engine, by target. Raises BundleError where there is none, or one cannot be read."""
    records = [record for record in bundle.manifest.engines if record.backend == "cuda"]
    if not records:
        raise BundleError(
            f"{bundle.path}: --steps lists the launch plan of a CUDA engine, and there is none. "
            "Build one with bei-compile --target cuda-sm90."
        )
    found = {}
    for record in records:
        path = bundle.path / record.path
        found[record.target] = decode_plan(path.read_bytes(), str(path))
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bei-inspect", description=__doc__)
    parser.add_argument("bundle", help="folder written by bei-compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--steps", action="store_true", help="list what CUDA engines launch: steps, operands, kernels, grids"
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="hash every file (default: yes; sizes and the manifest's own digest are always checked)",
    )
    return parser


def inspect(bundle: Bundle, *, verified: bool) -> dict[str, Any]:
    """What `--json` prints."""
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "verified": verified,
        "name": manifest.name,
        "bei_version": manifest.bei_version,
        "schema_version": manifest.schema_version,
        "model_type": manifest.model_type,
        "adapter": manifest.adapter,
        "license": manifest.license,
        "source": {"repo": manifest.source.repo, "revision": manifest.source.revision},
        "head": msgspec.to_builtins(manifest.head),
        "prompts": manifest.prompts,
        "default_prompt": manifest.default_prompt,
        "limits": msgspec.to_builtins(manifest.limits),
        "precision": manifest.precision,
        "parity": msgspec.to_builtins(manifest.parity),
        "bytes": sum(record.size for record in manifest.files.values()),
        "unlisted_files": unlisted_files(bundle),
        "engines": list(engines(manifest)),
        "uses": used_engine(manifest),
    }


def engines(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Each engine, its parity verdict, and why this machine does or does not use it."""
    used = used_engine(manifest)
    for record in manifest.engines:
        verdict = manifest.parity.verdicts.get(record.target, "not run")
        yield {
            **msgspec.to_builtins(record),
            "bytes": engine_bytes(manifest, record),
            "parity": verdict,
            "used": record.target == used,
            "reason": reason(manifest, record, used),
        }


def used_engine(manifest: Manifest) -> str | None:
    """The target that loading would choose here, None when there is none."""
    try:
        return choose_engine(manifest).record.target
    except BundleError:
        return None


def reason(manifest: Manifest, record: EngineRecord, used: str | None) -> str:
    """Why the engine is or is not used."""
    if record.target == used:
        return "first of the fallback chain that runs here and passed parity"
    cannot = registry.available(record) or unproven(manifest, record)
    if cannot is not None:
        return cannot
    return f"{used} comes first" if record.target in manifest.fallback else "not in the fallback chain"


def engine_bytes(manifest: Manifest, record: EngineRecord) -> int:
    """The engine's folder, or its one file where that lies at the top (its weights are the checkpoint's)."""
    folder, _, _ = record.path.rpartition("/")
    names = [name for name in manifest.files if name.startswith(f"{folder}/")] if folder else [record.path]
    return sum(manifest.files[name].size for name in names)


def show(facts: dict[str, Any], plans: Mapping[str, Plan] | None = None) -> None:
    """The facts as two tables in the terminal, and one for each schedule of ``plans``."""
    from rich.console import Console, Group

    Console().print(Group(*_tables(facts), *_steps(plans or {})))


def _steps(plans: Mapping[str, Plan]) -> Iterator["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    for target, plan in plans.items():
        for title, rows in lines(plan):
            table = Table(title=f"{target}: {title}", title_justify="left", show_lines=True)
            for name in ("", "step", "reads", "writes", "kernel [grid]"):
                table.add_column(name, overflow="fold")
            for row in rows:
                table.add_row(*map(Text, row))
            yield table


def _tables(facts: dict[str, Any]) -> Iterator["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    about = Table(title=facts["name"], show_header=False, title_justify="left")
    for name, value in _summary(facts):
        about.add_row(name, Text(value))
    yield about
    table = Table(title="Engines", title_justify="left", show_header=False, show_lines=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for engine in facts["engines"]:
        table.add_row(Text(engine["target"]), Text("\n".join(_engine_lines(engine))))
    yield table


def _summary(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    head, source, limits = facts["head"], facts["source"], facts["limits"]
    revision = f" at {source['revision']}" if source["revision"] else " (local folder)"
    yield "source", source["repo"] + revision
    yield (
        "model",
        f"{facts['model_type']} (adapter {facts['adapter']}), licence {facts['license'] or 'not stated'}",
    )
    yield "task", head["task"]
    yield "head", _head(head)
    yield "prompts", ", ".join(facts["prompts"]) or "none"
    yield (
        "limits",
        f"{limits['max_length']} tokens a text, {limits['max_batch_tokens']} a batch, {limits['max_batch']} rows",
    )
    yield "size", size(facts["bytes"])
    yield "files", "hashes verified" if facts["verified"] else "sizes checked, hashes not"
    if facts["unlisted_files"]:
        yield "ignored", ", ".join(facts["unlisted_files"])
    yield "uses here", facts["uses"] or "no engine"


def _head(head: dict[str, Any]) -> str:
    if head["labels"]:
        return f"{len(head['labels'])} labels: {', '.join(head['labels'][:8])}"
    pooling = f"{'+'.join(head['pooling'])} pooling" if head["pooling"] else "a vector for each token"
    parts = [pooling, f"{head['dimensions']} dimensions"]
    parts.append("unit length" if head["normalized"] else "not normalised")
    if head["matryoshka"]:
        parts.append(f"prefixes {', '.join(map(str, head['matryoshka']))}")
    return ", ".join(parts)


def _engine_lines(engine: dict[str, Any]) -> Iterator[str]:
    yield f"{engine['precision']}, {size(engine['bytes'])}, {engine['status']}, parity {engine['parity']}"
    yield f"{'used here' if engine['used'] else 'not used here'}: {engine['reason']}"
    profiles = msgspec.convert(engine["profiles"], tuple[Profile, ...])
    said = list(sentences(engine["evidence"], profiles))
    yield from said
    scalars = [f"{k} {v}" for k, v in engine["evidence"].items() if isinstance(v, str | int | float)]
    if scalars and not said:
        yield ", ".join(scalars[:EVIDENCE_SHOWN])


if __name__ == "__main__":
    sys.exit(main())
