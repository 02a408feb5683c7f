"""Tells transformers' Auto classes about the references of this package."""

from transformers import AutoConfig, AutoModel

from bei.compiler.parity.references.jina import Jina, JinaConfig
from bei.compiler.parity.references.nomic import Nomic, NomicConfig


def register() -> None:
    """Under model types of their own, so that none of transformers' is replaced; twice is as good as once."""
    for config, model in ((JinaConfig, Jina), (NomicConfig, Nomic)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
