"""Every operation that the server offers."""

from bei.runtime.http import (
    baseten,
    clouds,
    health,
    info,
    models,
    openai,
    rerank,
    tei,
    tei_scores,
    vllm,
)
from bei.runtime.http.errors import Family, openai_error

OPERATIONS = (
    *openai.OPERATIONS,
    *tei.OPERATIONS,
    *tei_scores.OPERATIONS,
    *rerank.OPERATIONS,
    *baseten.OPERATIONS,
    *vllm.OPERATIONS,
    *clouds.OPERATIONS,
    *models.OPERATIONS,
    *info.OPERATIONS,
    *health.OPERATIONS,
)

_FAMILIES = {path: operation.family for operation in OPERATIONS for path in operation.paths}


def family_of(path: str) -> Family:
    """Whose words a failure on a path is told in: OpenAI's where the path belongs to nobody."""
    return _FAMILIES.get(path.removeprefix("/sync"), openai_error)
