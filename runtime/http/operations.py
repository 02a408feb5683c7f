"""Every operation that the server offers."""

from bei.runtime.http import health, models, openai
from bei.runtime.http.errors import Family, openai_error

OPERATIONS = (*openai.OPERATIONS, *models.OPERATIONS, *health.OPERATIONS)

_FAMILIES = {path: operation.family for operation in OPERATIONS for path in operation.paths}


def family_of(path: str) -> Family:
    """Whose words a failure on a path is told in: OpenAI's where the path belongs to nobody."""
    return _FAMILIES.get(path.removeprefix("/sync"), openai_error)
