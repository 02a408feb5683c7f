"""What the `args` of a Ray Serve application may say: the options of `bei-serve` that make sense behind Ray's proxy.

CPUs, GPUs and the number of replicas are not here: they belong to Ray (`ray_actor_options`, `autoscaling_config`).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from bei.errors import InputError
from bei.runtime.http.settings import DRAIN_SECONDS, Settings
from bei.runtime.keys import VARIABLE, find_keys
from bei.runtime.pace import HANG_SECONDS
from bei.runtime.serve import Options, ServedAs

Positive = Annotated[int, msgspec.Meta(ge=1)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class BundleArgument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bundle where its folder does not say enough: see `ServedAs`."""

    path: Text
    name: str = ""
    prompts: dict[str, str] = {}
    default_prompt: str | None = None


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As the options of `bei-serve` of these names; ``api_key_variable`` must hold keys in the replicas' environment,
    while BEI_API_KEYS is read where it is set."""

    bundles: Text | Annotated[list[Text | BundleArgument], msgspec.Meta(min_length=1)]
    target: str | None = None
    max_batch_tokens: Positive | None = None
    allow_unverified: bool = False
    strict_model_name: bool = False
    normalize: Literal["model", "always"] = "model"
    max_queue_tokens: Positive = Options().max_queue_tokens
    max_body_bytes: Positive = Settings().max_body_bytes
    hang_seconds: Positive = int(HANG_SECONDS)
    drain_seconds: Annotated[int, msgspec.Meta(ge=0)] = DRAIN_SECONDS
    api_key_file: str | None = None
    api_key_variable: str | None = None
    cors_origins: list[str] = []
    access_log: bool = False
    otlp_endpoint: str | None = None

    def served(self) -> dict[str, ServedAs]:
        """What to serve, by folder."""
        listed = [self.bundles] if isinstance(self.bundles, str) else self.bundles
        return {_path(entry): _served_as(entry) for entry in listed}

    def options(self, environment: Mapping[str, str] = os.environ) -> Options:
        """With the keys that this machine has. Raises BeiError when they cannot be read."""
        file = None if self.api_key_file is None else Path(self.api_key_file)
        if self.api_key_variable is not None and self.api_key_variable not in environment:
            raise InputError(
                f"api_key_variable: {self.api_key_variable} is not set where the replica runs. "
                "Set it in the nodes' environment or in the application's runtime_env."
            )
        return Options(
            settings=Settings(
                max_body_bytes=self.max_body_bytes,
                drain_seconds=self.drain_seconds,
                strict_model_name=self.strict_model_name,
                always_normalize=self.normalize == "always",
            ),
            max_queue_tokens=self.max_queue_tokens,
            hang_seconds=self.hang_seconds,
            keys=find_keys(file, environment, variable=self.api_key_variable or VARIABLE),
            origins=tuple(self.cors_origins),
            access_log=self.access_log,
            otlp_endpoint=self.otlp_endpoint,
        )


def read_arguments(args: Mapping[str, Any]) -> Arguments:
    """From YAML, or from a command line where all is text. Raises InputError."""
    try:
        arguments = msgspec.convert(dict(args), Arguments, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(Arguments.__struct_fields__)
        raise InputError(f"args: {error}. Correct the application's args; known are {known}.") from None
    listed = [] if isinstance(arguments.bundles, str) else arguments.bundles
    if len({_path(entry) for entry in listed}) < len(listed):
        raise InputError(
            "bundles: the same folder is given twice. Use more replicas for more engines of one bundle."
        )
    if arguments.api_key_file is not None and arguments.api_key_variable is not None:
        raise InputError("api_key_file, api_key_variable: got both, need one of them.")
    return arguments


def _path(entry: str | BundleArgument) -> str:
    return entry if isinstance(entry, str) else entry.path


def _served_as(entry: str | BundleArgument) -> ServedAs:
    if isinstance(entry, str):
        return ServedAs()
    return ServedAs(name=entry.name, prompts=entry.prompts, default_prompt=entry.default_prompt)
