"""What is served, in TEI's form (/info) and in NIM's (/v1/metadata)."""

from typing import Any

import msgspec

from bei import __version__
from bei.errors import EngineError
from bei.manifest import HeadSpec, Task, Verdict
from bei.runtime.http.errors import tei_error
from bei.runtime.http.inputs import MAX_ITEMS
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.service import TOKENIZER_THREADS, Service

NAMES: dict[Task, str] = {
    "classify": "classifier",
    "rerank": "reranker",
    "token-classify": "token_classifier",
}
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Labels(msgspec.Struct, kw_only=True):
    """A classifier's labels by index and index by label."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class Pooling(msgspec.Struct, kw_only=True):
    """How an embedding model pools; "none" where it gives a vector for each token."""

    pooling: str


class ModelType(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Exactly one of them."""

    embedding: Pooling | None = None
    classifier: Labels | None = None
    reranker: Labels | None = None
    token_classifier: Labels | None = None


class ModelInfo(msgspec.Struct, kw_only=True):
    """One served model: TEI's fields, then ours.

    Limits that do not exist are null: what waits is bounded by ``max_queue_tokens``.
    ``parity`` is the verdict of the engine's certificate, "executed" or not its ``status``; ``cosine_min`` and
    ``logit_error`` are the certificate's worst text, whichever the task has. ``engine`` is what it tells of itself.
    """

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    max_queue_tokens: int
    task: Task
    license: str | None
    target: str
    device: str
    precision: str
    layout: str
    status: str
    parity: Verdict
    cosine_min: float | None
    logit_error: float | None
    normalized: bool
    always_normalize: bool
    dimensions: int | None
    matryoshka: tuple[int, ...]
    prompts: dict[str, str]
    default_prompt: str | None
    engine: dict[str, Any]


class ServerInfo(ModelInfo, kw_only=True):
    """The first model, as TEI's clients expect it, and all of them."""

    models: list[ModelInfo]


class NimModelInfo(msgspec.Struct, kw_only=True, rename="camel"):
    """A model's name and where it came from."""

    short_name: str
    model_url: str


class NimLicense(msgspec.Struct, kw_only=True, rename="camel"):
    """The licences of the models."""

    name: str


class NimMetadata(msgspec.Struct, kw_only=True, rename="camel"):
    """GET /v1/metadata."""

    version: str
    model_info: list[NimModelInfo]
    license_info: list[NimLicense]


async def info(call: Call, _: None) -> Answer:
    models = [describe(service, call.settings.always_normalize) for service in call.served]
    return Answer(content=ServerInfo(**msgspec.structs.asdict(models[0]), models=models))


async def metadata(call: Call, _: None) -> Answer:
    manifests = [(service.name, service.manifest) for service in call.served]
    return Answer(
        content=NimMetadata(
            version=__version__,
            model_info=[
                NimModelInfo(short_name=name, model_url=made.source.repo) for name, made in manifests
            ],
            license_info=[NimLicense(name=made.license or "unknown") for _, made in manifests],
        )
    )


def describe(service: Service, always_normalize: bool) -> ModelInfo:
    manifest, record = service.manifest, service.model.choice.record
    head = manifest.head
    measures = manifest.parity.summary.get(record.target, {}).get("measures", {})
    return ModelInfo(
        model_id=manifest.source.repo,
        model_sha=manifest.source.revision,
        model_dtype=DTYPES.get(record.precision, record.precision),
        served_model_name=service.name,
        model_type=model_type(head),
        max_concurrent_requests=None,
        max_input_length=manifest.limits.max_length,
        max_batch_tokens=service.model.budget.max_tokens,
        max_batch_requests=service.model.budget.max_rows,
        max_client_batch_size=MAX_ITEMS,
        auto_truncate=True,
        tokenization_workers=TOKENIZER_THREADS,
        version=__version__,
        sha=None,
        docker_label=None,
        max_queue_tokens=service.scheduler.max_queue_tokens,
        task=head.task,
        license=manifest.license,
        target=record.target,
        device=record.device,
        precision=record.precision,
        layout=record.layout,
        status=record.status,
        parity=manifest.parity.verdicts.get(record.target, "not run"),
        cosine_min=measures.get("cosine_min"),
        logit_error=measures.get("logit_error"),
        normalized=head.normalized,
        always_normalize=always_normalize,
        dimensions=None if head.labels else head.dimensions,
        matryoshka=head.matryoshka,
        prompts=manifest.prompts,
        default_prompt=manifest.default_prompt,
        engine=engine_facts(service),
    )


def engine_facts(service: Service) -> dict[str, Any]:
    """What the engine tells of itself; of one that is lost, the error."""
    try:
        return service.model.executor.describe()
    except EngineError as error:
        return {"error": str(error)}


def model_type(head: HeadSpec) -> ModelType:
    if head.task in ("embed", "embed-tokens"):
        return ModelType(embedding=Pooling(pooling="+".join(head.pooling) or "none"))
    labels = Labels(
        id2label={str(index): label for index, label in enumerate(head.labels)},
        label2id={label: index for index, label in enumerate(head.labels)},
    )
    made = ModelType()
    setattr(made, NAMES[head.task], labels)
    return made


OPERATIONS = (
    Operation(
        name="info",
        paths=("/info",),
        summary="The models, their limits and the engines that run them.",
        handle=info,
        tag="models",
        gives=ServerInfo,
        family=tei_error,
    ),
    Operation(
        name="metadata",
        paths=("/v1/metadata",),
        summary="Version, models and licences, as NVIDIA NIM tells them.",
        handle=metadata,
        tag="models",
        gives=NimMetadata,
    ),
)
