"""bei: a model compiler for encoder models.

import bei
model = bei.load("minilm.bundle")
model.encode(["a", "b"])        # float32 [2, dimensions]
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load"]

if TYPE_CHECKING:
    from bei.runtime.model import Model, load


def __getattr__(name: str) -> Any:
    """Load the runtime on first use, so that `import bei` costs nothing."""
    if name in ("Model", "load"):
        from bei.runtime import model

        return getattr(model, name)
    raise AttributeError(f"module 'bei' has no attribute {name!r}")
