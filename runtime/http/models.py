"""What is served: OpenAI's list of models."""

import time

import msgspec

from bei.runtime.http.errors import NOT_FOUND
from bei.runtime.http.operation import Answer, Call, Operation

STARTED = int(time.time())


class ModelCard(msgspec.Struct, kw_only=True):
    """One entry of GET /v1/models; ``created`` in unix seconds."""

    id: str
    created: int
    object: str = "model"
    owned_by: str = "bei"


class ModelList(msgspec.Struct, kw_only=True):
    """GET /v1/models."""

    data: list[ModelCard]
    object: str = "list"


async def models(call: Call, _: None) -> Answer:
    return Answer(content=ModelList(data=[_card(service.name) for service in call.served]))


async def model(call: Call, _: None) -> Answer:
    return Answer(content=_card(call.served.named(call.path_params["id"]).name))


def _card(name: str) -> ModelCard:
    return ModelCard(id=name, created=STARTED)


OPERATIONS = (
    Operation(
        name="list_models",
        paths=("/v1/models",),
        summary="The models served here.",
        handle=models,
        tag="models",
        gives=ModelList,
    ),
    Operation(
        name="retrieve_model",
        paths=("/v1/models/{id:path}",),
        summary="One of the models.",
        handle=model,
        tag="models",
        gives=ModelCard,
        may_fail=(NOT_FOUND,),
    ),
)
