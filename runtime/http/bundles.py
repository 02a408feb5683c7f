"""What is loaded, and how it was proven: one entry a bundle."""

import msgspec

from bei.manifest import Task, Verdict
from bei.runtime.http.operation import Answer, Call, Operation
from bei.runtime.service import Service


class BundleCard(msgspec.Struct, kw_only=True):
    """One entry of GET /v1/bundles. ``verdict`` is the certificate's for the engine that runs; ``cosine_min`` and
    ``logit_error`` are its worst text's, whichever the task has. ``revision`` is a commit hash, or None."""

    name: str
    task: Task
    target: str
    device: str
    precision: str
    layout: str
    verdict: Verdict
    cosine_min: float | None
    logit_error: float | None
    dimensions: int
    normalized: bool
    matryoshka: tuple[int, ...]
    labels: tuple[str, ...]
    prompts: dict[str, str]
    max_length: int
    repo: str
    revision: str | None
    license: str | None


async def bundles(call: Call, _: None) -> Answer:
    return Answer(content=[card(service) for service in call.served])


def card(service: Service) -> BundleCard:
    manifest, record = service.manifest, service.model.choice.record
    measures = manifest.parity.summary.get(record.target, {}).get("measures", {})
    return BundleCard(
        name=service.name,
        task=manifest.head.task,
        target=record.target,
        device=record.device,
        precision=record.precision,
        layout=record.layout,
        verdict=manifest.parity.verdicts.get(record.target, "not run"),
        cosine_min=measures.get("cosine_min"),
        logit_error=measures.get("logit_error"),
        dimensions=manifest.head.dimensions,
        normalized=manifest.head.normalized,
        matryoshka=manifest.head.matryoshka,
        labels=manifest.head.labels,
        prompts=manifest.prompts,
        max_length=manifest.limits.max_length,
        repo=manifest.source.repo,
        revision=manifest.source.revision,
        license=manifest.license,
    )


OPERATIONS = (
    Operation(
        name="list_bundles",
        paths=("/v1/bundles",),
        summary="The bundles served here: engine, limits, prompts, and the verdict of the parity certificate.",
        handle=bundles,
        tag="models",
        gives=list[BundleCard],
    ),
)
