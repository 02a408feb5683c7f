"""Equal engines of one bundle: on several devices, or several on one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from bei.errors import BeiError
from bei.runtime.cpu import usable_cpus
from bei.runtime.executor import Executor, Guarded
from bei.runtime.executors import registry
from bei.runtime.model import Model, load


@contextmanager
def loaded(
    path: str,
    *,
    target: str | None = None,
    threads: int | None = None,
    devices: Sequence[int] = (0,),
    replicas: int = 1,
    max_batch_tokens: int | None = None,
    allow_unverified: bool = False,
) -> Iterator[tuple[Model, list[Executor]]]:
    """The bundle's model and its engines: ``replicas`` on each of ``devices``, sharing ``threads`` CPU threads.

    ``max_batch_tokens`` as in `Model.limit_batches`. Raises BundleError, EngineError, InputError.
    """
    places = [device for device in devices for _ in range(replicas)]
    share = max(1, (threads or usable_cpus()) // len(places))
    with ExitStack() as stack:
        model = stack.enter_context(
            load(path, target=target, threads=share, device=places[0], allow_unverified=allow_unverified)
        )
        if max_batch_tokens is not None:
            model.limit_batches(max_batch_tokens)
        if model.choice.record.device == "cpu" and len(devices) > 1:
            raise BeiError(f"--devices: {model.target} runs on the CPU. Use --replicas, or another --target.")
        engines: list[Executor] = [model.executor]
        for device in places[1:]:
            more = registry.create(
                model.bundle.path, model.choice.record, model.manifest, threads=share, device=device
            )
            engines.append(stack.enter_context(closing(Guarded(more))))
        yield model, engines
