"""The contract between the compiler and the runtime: the bundle's ``manifest.json``.

The compiler writes it, the runtime reads it, and neither imports the other. Every file of the bundle is listed with
its SHA-256 and size; the manifest itself carries a digest over its own canonical JSON, so that one changed byte
anywhere is seen. (A digest detects damage and edits; it is no signature.)
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from bei.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"

Task = Literal["embed", "embed-tokens", "classify", "rerank", "token-classify"]
Device = Literal["cpu", "cuda"]
Layout = Literal["padded", "packed"]
EngineStatus = Literal["executed", "built, not executed"]
Verdict = Literal["passed", "failed", "not run"]


class _Data(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Immutable, and strict when decoded: a field this version does not know is refused."""


class FileRecord(_Data, frozen=True, kw_only=True):
    """``sha256`` in lower-case hex, ``size`` in bytes."""

    sha256: str
    size: int


class Source(_Data, frozen=True, kw_only=True):
    """Where the checkpoint came from; ``revision`` is a commit hash, or None for a local folder."""

    repo: str
    revision: str | None
    files: dict[str, FileRecord]


class Golden(_Data, frozen=True, kw_only=True):
    """A text and the token ids the tokenizer must give for it (special tokens included)."""

    text: str
    ids: tuple[int, ...]


class TokenizerSpec(_Data, frozen=True, kw_only=True):
    """How to turn texts into ids. ``file`` holds the whole tokenizer, lower-casing included; ``unk_id`` is the id of the
    unknown token, None where there is none."""

    file: str
    pad_id: int
    vocab_size: int
    golden: tuple[Golden, ...]
    unk_id: int | None = None


class HeadSpec(_Data, frozen=True, kw_only=True):
    """What comes out of the engine's one output.

    embed: ``sentence_embedding`` float32 [B, dimensions]; embed-tokens: ``token_embeddings`` float32 [B, L, dimensions];
    classify and rerank: ``logits`` float32 [B, len(labels)]; token-classify: ``logits`` float32 [B, L, len(labels)].
    """

    task: Task
    output: str
    dimensions: int
    pooling: tuple[str, ...]
    include_prompt: bool
    normalized: bool
    matryoshka: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    @property
    def per_token(self) -> bool:
        """Whether the output has a row for each token."""
        return not self.pooling


class Limits(_Data, frozen=True, kw_only=True):
    """Tokens a text may have, special tokens included; tokens (padding included) and rows of one engine call."""

    max_length: int
    max_batch_tokens: int
    max_batch: int


class Profile(_Data, frozen=True, kw_only=True):
    """One set of sizes a plan was built for: rows, tokens of the longest row, tokens in all (a padded engine's: slots).

    ``activation_bytes`` is what the builder reserves for it; None where it did not say.
    """

    max_batch: int
    max_length: int
    max_tokens: int
    activation_bytes: int | None = None


class EngineRecord(_Data, frozen=True, kw_only=True):
    """One compiled plan. ``path`` is relative to the bundle; ``inputs`` are the tensor names it takes.

    ``layout`` padded: ``input_ids``, ``attention_mask``[, ``token_type_ids``] as [B, L]; packed: see the runtime's
    packing. ``compute_capabilities`` such as ("8.0", "8.9") is empty for a CPU engine. ``version_compatible``: later
    versions of the tool read it too, and it holds code that they run. ``evidence`` is what the build showed (fused attention count, plan size, …), as plain JSON. One call must fit one of ``profiles``; where there
    are none the bundle's limits are all there is.
    """

    target: str
    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx", "cuda"]
    device: Device
    layout: Layout
    precision: str
    path: str
    inputs: tuple[str, ...]
    status: EngineStatus
    tool_versions: dict[str, str]
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    profiles: tuple[Profile, ...] = ()
    evidence: dict[str, Any] = {}


class ParityRecord(_Data, frozen=True, kw_only=True):
    """Verdict per engine target; the measurements are in ``file``. ``classes``: the device classes ("cpu", "sm89") that
    each target passed on, of which one plan can serve several."""

    file: str | None
    verdicts: dict[str, Verdict]
    classes: dict[str, tuple[str, ...]] = {}
    summary: dict[str, Any] = {}


class Manifest(_Data, frozen=True, kw_only=True):
    """Everything a runtime needs to know about a bundle."""

    schema_version: int
    bei_version: str
    name: str
    model_type: str
    adapter: str
    license: str | None
    source: Source
    encoder: dict[str, Any]
    head: HeadSpec
    tokenizer: TokenizerSpec
    prompts: dict[str, str]
    default_prompt: str | None
    limits: Limits
    precision: dict[str, Any]
    engines: tuple[EngineRecord, ...]
    fallback: tuple[str, ...]
    parity: ParityRecord
    files: dict[str, FileRecord]
    digest: str = ""

    def engine(self, target: str) -> EngineRecord:
        """The record of ``target``; raises BundleError naming the targets there are."""
        for record in self.engines:
            if record.target == target:
                return record
        have = ", ".join(record.target for record in self.engines)
        raise BundleError(f"{self.name}: no engine for target {target!r}; the bundle has {have}.")


def encode_manifest(manifest: Manifest) -> bytes:
    """JSON bytes (UTF-8, indented, stable order) with ``digest`` filled in."""
    plain = msgspec.to_builtins(manifest)
    plain["digest"] = _digest(plain)
    return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Parse and verify; ``where`` names the file in errors. Raises BundleError."""
    try:
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{where}: not valid JSON ({error}). Rebuild the bundle with bei-compile."
        ) from None
    if not isinstance(plain, dict) or not isinstance(plain.get("schema_version"), int):
        raise BundleError(f"{where}: not a bundle manifest (no schema_version). Rebuild with bei-compile.")
    version = plain["schema_version"]
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema version {version}, but this bei reads up to {SCHEMA_VERSION}. Upgrade bei."
        )
    if plain.get("digest") != _digest(plain):
        raise BundleError(f"{where}: the digest does not match its content: edited or damaged. Rebuild it.")
    try:
        return msgspec.convert(plain, Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{where}: {error}. Rebuild the bundle with bei-compile.") from None


def _digest(plain: Mapping[str, Any]) -> str:
    body = {key: value for key, value in plain.items() if key != "digest"}
    return hashlib.sha256(msgspec.json.encode(body, order="sorted")).hexdigest()
