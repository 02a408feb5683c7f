"""bei-export: a bundle in the form that another server or library loads.

bei-export BUNDLE --format triton                  a Triton model repository: tokenizer step, engine, ensemble
bei-export BUNDLE --format onnx                    one folder for ONNX Runtime, Optimum, fastembed
bei-export BUNDLE --format sentence-transformers   a folder for SentenceTransformer(folder, backend="onnx")
bei-export BUNDLE --format trtexec                 a plan, inputs, and the trtexec or tensorrt_rtx commands that load it

Exit codes: 0 done; 2 the input is not usable; 130 interrupted. An export appears complete or not at all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bei.command import report_errors
from bei.compiler.export import onnx_folder, sentence_folder, triton, trtexec
from bei.compiler.export.folder import new_folder
from bei.manifest import EngineRecord
from bei.runtime.bundle import Bundle, open_bundle


class Write(Protocol):
    """Fills a new folder from a bundle and says which engine it holds."""

    def __call__(
        self, bundle: Bundle, folder: Path, *, target: str | None, allow_unverified: bool
    ) -> EngineRecord: ...


FORMATS: dict[str, Write] = {
    "triton": triton.write,
    "onnx": onnx_folder.write,
    "sentence-transformers": sentence_folder.write,
    "trtexec": trtexec.write,
}


def parser() -> argparse.ArgumentParser:
    """The flags; each one is a promise (tests/test_cli_options.py lists them)."""
    p = argparse.ArgumentParser(
        prog="bei-export", description="Write a bundle in the form that another server or library loads."
    )
    p.add_argument("bundle", metavar="BUNDLE", help="folder written by bei-compile")
    p.add_argument("--format", required=True, choices=sorted(FORMATS), help="who is to load it")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="must not exist, or be empty")
    p.add_argument("--target", help="engine to export (default: the one that suits the format)")
    p.add_argument(
        "--allow-unverified", action="store_true", help="export an engine that did not pass parity"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)
    return report_errors("bei-export", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    bundle = open_bundle(args.bundle)
    record = export(bundle, args.format, args.out, target=args.target, allow_unverified=args.allow_unverified)
    print(f"{args.out}: {args.format} export of {bundle.manifest.name} ({record.target})")
    return 0


def export(
    bundle: Bundle, form: str, out: Path, *, target: str | None = None, allow_unverified: bool = False
) -> EngineRecord:
    """Write ``out``; returns the record of the engine in it. Raises BundleError, InputError."""
    with new_folder(out) as folder:
        return FORMATS[form](bundle, folder, target=target, allow_unverified=allow_unverified)


if __name__ == "__main__":
    sys.exit(main())
