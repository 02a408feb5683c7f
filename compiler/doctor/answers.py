"""What can be done on this machine: what bei-compile would build, what bei-serve would run, and for each "no" why and
what to do about it.

The reasons are those of the code that would refuse, in its own words: *what is wrong; what to do*.
"""

import re
from collections.abc import Iterator, Sequence

import msgspec

from bei.compiler.doctor.machine import Card, Machine
from bei.compiler.engines.build import RTX_DEFAULT, default_targets, why_not
from bei.compiler.target import SMS, BackendName, Target, parse_target
from bei.manifest import EngineRecord, Manifest
from bei.runtime import inspect_cli
from bei.runtime.evidence import size
from bei.runtime.executors import registry
from bei.runtime.tensorrt.library import LIBRARIES, library_version

GPU_BACKENDS: tuple[BackendName, ...] = ("cuda", "tensorrt", "tensorrt-rtx")
PARITY = ("torch", "transformers", "sentence-transformers")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``what`` can be done (``yes``), or cannot, with the reason in ``said`` and the ``remedy``."""

    what: str
    yes: bool
    said: str
    remedy: str | None = None


def answer(what: str, reason: str | None, yes: str, otherwise: str) -> Answer:
    """From a reason as refusals give it; None is a yes. ``otherwise`` is the remedy where the reason names none."""
    if reason is None:
        return Answer(what=what, yes=True, said=yes)
    found = re.fullmatch(r"(?P<why>.*); (?P<do>[^;]*)|(?P<lacks>.*) \((?P<install>pip install .*)\)", reason)
    if found is None:
        return Answer(what=what, yes=False, said=reason, remedy=otherwise)
    why, do = found["why"] or found["lacks"], found["do"] or found["install"]
    return Answer(what=what, yes=False, said=why, remedy=do)


def compiles(machine: Machine) -> Iterator[Answer]:
    """Each kind of engine, and the parity check that proves them."""
    default = {target.name for target in default_targets()}
    for target in _targets(machine.gpus):
        if target.name in default:
            yes = "built when no --target is given"
        elif target.backend == "tensorrt":
            yes = f"with --target {target.name}"
        else:
            yes = f"with --target {target.name}, or for another SM"
        yield answer(target.name, why_not(target), yes, "choose another --target")
    missing = [name for name in PARITY if machine.packages[name] is None]
    reason = f'{", ".join(missing)} not installed; pip install "bei[parity]"' if missing else None
    yield answer("parity check", reason, "every engine that runs here is compared with Hugging Face", "")


def _targets(cards: Sequence[Card]) -> list[Target]:
    """The CPU's, TensorRT-RTX's usual one, and those for the GPUs that are here (else for SM90, to say something)."""
    sms = sorted({card.sm for card in cards}) or [90]
    names = ["onnxruntime-cpu", RTX_DEFAULT]
    for backend in ("cuda", "tensorrt"):
        names += [f"{backend}-sm{sm}" for sm in sms if sm in SMS[backend]]
    return [parse_target(name) for name in names]


def serves(machine: Machine) -> Iterator[Answer]:
    """Each kind of engine, were there a bundle with one built for this machine by what is installed."""
    cpu = _record("onnxruntime", None)
    yield answer(cpu.target, registry.available(cpu), "on the CPU", "pip install onnxruntime")
    for backend in GPU_BACKENDS:
        if not machine.gpus:
            reason = machine.no_gpu or "there is no GPU"
            yield answer(backend, reason, "", "look at nvidia-smi, and at CUDA_VISIBLE_DEVICES")
        for card in _kinds(machine.gpus):
            yield answer(
                f"{backend}-sm{card.sm}",
                _refusal(backend, card),
                f"on {card.name}",
                "update the NVIDIA driver",
            )


def _kinds(cards: Sequence[Card]) -> list[Card]:
    """One card of each SM."""
    return list({card.sm: card for card in reversed(cards)}.values())[::-1]


def _refusal(backend: BackendName, card: Card) -> str | None:
    if card.sm not in SMS[backend]:
        others = [f"{b}-sm{card.sm}" for b in GPU_BACKENDS if card.sm in SMS[b]]
        use = f"use {' or '.join(others)}" if others else "use onnxruntime-cpu"
        return f"{backend} is not made for SM{card.sm} ({card.name}); {use}"
    return registry.available(_record(backend, card))


def _record(backend: BackendName, card: Card | None) -> EngineRecord:
    """An engine built for ``card`` by the version that is installed."""
    target = Target(backend=backend, device="cuda" if card else "cpu", sms=(card.sm,) if card else ())
    version = library_version(backend) if backend in LIBRARIES else None
    return EngineRecord(
        target=target.name,
        backend=backend,
        device=target.device,
        layout="padded",
        precision="fp16",
        path="",
        inputs=(),
        status="built, not executed",
        tool_versions={} if version is None else {backend: version},
        compute_capabilities=target.compute_capabilities,
    )


def bundle_answers(manifest: Manifest, machine: Machine) -> Iterator[Answer]:
    """Each engine of a bundle, in fallback order: may it run here, is it proven, does it fit the GPU."""
    used = inspect_cli.used_engine(manifest)
    ordered = sorted(manifest.engines, key=lambda record: _place(manifest, record))
    for record in ordered:
        reason = registry.available(record)
        verdict = manifest.parity.verdicts.get(record.target, "not run")
        if reason is None and verdict != "passed":
            reason = f"its parity verdict is {verdict!r}; run bei-parity here"
        reason = reason or _too_large(record, machine.gpus)
        yes = "bei-serve runs it" if record.target == used else f"{used} comes first"
        yield answer(record.target, reason, yes, _rebuild(record, machine.gpus))


def _place(manifest: Manifest, record: EngineRecord) -> int:
    chain = list(manifest.fallback)
    return chain.index(record.target) if record.target in chain else len(chain)


def _rebuild(record: EngineRecord, cards: Sequence[Card]) -> str:
    """What to compile instead of an engine that is for another GPU: of its own kind where there is one for this."""
    fitting = [
        f"{b}-sm{c.sm}" for c in cards for b in (record.backend, *GPU_BACKENDS) if c.sm in SMS.get(b, ())
    ]
    return f"compile it for this machine: bei-compile --target {fitting[0] if fitting else 'onnxruntime-cpu'}"


def _too_large(record: EngineRecord, cards: Sequence[Card]) -> str | None:
    """Why the engine does not fit any of the GPUs it was built for, as far as its evidence and they tell."""
    needs = memory_needed(record)
    free = [card.free for card in cards if f"{card.sm // 10}.{card.sm % 10}" in record.compute_capabilities]
    known = [free_bytes for free_bytes in free if free_bytes is not None]
    if not needs or not known or needs <= max(known):
        return None
    return (
        f"its largest batch needs {size(needs)}, and {size(max(known))} are free on the GPU; "
        "free some, or compile with a smaller --max-batch-tokens"
    )


def memory_needed(record: EngineRecord) -> int:
    """Bytes of a TensorRT plan's weights and of its largest profile's activations; 0 where the record does not say."""
    sizes = [profile.activation_bytes or 0 for profile in record.profiles]
    return int(record.evidence.get("plan_bytes", 0)) + max(sizes, default=0)
