"""The answer as data: replicas, device, token budget, load and cost, what bounds them and what to do about it."""

from collections.abc import Mapping, Sequence

import msgspec

from bei.cards import assumed_price
from bei.runtime.capacity.search import Answer, Bound, Promise
from bei.runtime.capacity.simulation import Part


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One device; ``curve`` and ``host`` say where its times and those of tokenizer and server are from. ``busy``, ``p50_ms``, ``p99_ms`` are those of a replica when ``spare`` of them are lost; times in
    milliseconds, prices in US dollars, None where no price is known. Where no number of replicas keeps the promise
    ``replicas`` and all that follows from it is None; ``alone_p99_ms`` then says why."""

    device: str
    card: str
    target: str
    curve: str
    host: str
    in_bundle: bool
    replicas: int | None
    spare: int
    max_batch_tokens: int
    busy: dict[Part, float]
    p50_ms: float | None
    p99_ms: float | None
    alone_p99_ms: float
    requests_per_second: float | None
    texts_per_second: float | None
    batch_tokens: float | None
    bound: Bound
    advice: tuple[str, ...]
    price_hour: float | None
    price_assumed: bool
    cost_hour: float | None
    cost_million_texts: float | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """``options`` with the cheapest first (where prices are known), those that cannot do it last. ``cut``: the share of
    texts longer than the model takes."""

    model: str
    rate: float
    p99_ms: float
    lengths: str
    texts_per_request: str
    cut: float
    seed: int
    options: tuple[Option, ...]

    @property
    def feasible(self) -> bool:
        return any(option.replicas is not None for option in self.options)


def option(
    answer: Answer, promise: Promise, *, prices: Mapping[str, float], in_bundle: bool, spare: int
) -> Option:
    """The answer for one device, priced."""
    curve, seen = answer.model.curve, answer.seen
    price = prices.get(curve.card, assumed_price(curve.card, curve.threads))
    replicas = None if answer.replicas is None else answer.replicas + spare
    cost = None if price is None or replicas is None else price * replicas
    done = seen is not None
    texts = None if seen is None else seen.texts / len(seen.latencies)
    rate = None if answer.replicas is None else promise.traffic.rate / answer.replicas
    return Option(
        device=curve.device,
        card=curve.card,
        target=curve.target,
        curve=curve.source,
        host=f"{answer.model.host.device}, {_cores(answer.model.host.cores)}; {answer.model.host.source}",
        in_bundle=in_bundle,
        replicas=replicas,
        spare=spare,
        max_batch_tokens=answer.model.budget.max_tokens,
        busy={} if seen is None else {part: round(share, 3) for part, share in seen.busy.items()},
        p50_ms=_milliseconds(seen.quantile(0.5)) if seen is not None else None,
        p99_ms=_milliseconds(seen.quantile(0.99)) if seen is not None else None,
        alone_p99_ms=_milliseconds(answer.alone),
        requests_per_second=rate,
        texts_per_second=rate * texts if rate is not None and texts is not None else None,
        batch_tokens=seen.batch_tokens / seen.batches if seen is not None else None,
        bound=answer.bound,
        advice=tuple(_advice(answer, promise, in_bundle)) if done else (_impossible(answer, promise),),
        price_hour=price,
        price_assumed=curve.card not in prices,
        cost_hour=cost,
        cost_million_texts=None
        if cost is None or texts is None
        else cost / (promise.traffic.rate * texts * 3600) * 1e6,
    )


def ordered(options: Sequence[Option]) -> tuple[Option, ...]:
    """What can be done before what cannot, cheap before dear, few replicas before many."""
    return tuple(
        sorted(
            options,
            key=lambda one: (
                one.replicas is None,
                one.cost_hour is None,
                one.cost_hour or 0.0,
                one.replicas or 0,
            ),
        )
    )


def _advice(answer: Answer, promise: Promise, in_bundle: bool) -> list[str]:
    """What to do, and what would take fewer replicas."""
    model, said = answer.model, []
    longest = max(max(one.lengths) for one in promise.traffic.arrivals(1000, share=1, seed=promise.seed))
    if longest > model.curve.max_length:
        said.append(
            f"Texts have up to {longest} tokens, and nothing longer than {model.curve.max_length} was measured on this "
            "device: longer ones are counted by their tokens alone."
        )
    if not in_bundle:
        said.append(f"The bundle has no engine {model.curve.target}: build it with bei-compile --target.")
    said.append(f"Serve with --max-batch-tokens {model.budget.max_tokens}.")
    if answer.bound == "engine":
        said.append(
            "The engine is what is full: a faster device or shorter texts (--max-length) save replicas."
        )
    elif answer.bound == "event loop":
        said.append(
            "The server's event loop is full, not the engine: a request costs it "
            f"{1e3 * model.slower * model.host.request:.2f} ms and each text {1e3 * model.slower * model.host.text:.3f} ms. "
            "Put more texts into a request, or run several servers on a device."
        )
    elif answer.bound == "host":
        said.append(
            f"The {model.host.cores} cores of the host are full, not the engine: give a replica more of them (--host-cores)."
        )
    elif answer.bound == "tokenizer":
        said.append("The tokenizer's threads are full, not the engine: run several servers on a device.")
    else:
        said.append(
            f"No part is full: the promise is. A request by itself takes {1e3 * answer.alone:.1f} ms at the 99th "
            f"percentile, so {1e3 * (promise.p99 - answer.alone):.1f} ms are left for waiting. A later p99 saves replicas."
        )
    return said


def _impossible(answer: Answer, promise: Promise) -> str:
    wanted = f"{1e3 * promise.p99:.1f} ms"
    if answer.alone > promise.p99:
        return (
            f"p99 of {wanted} cannot be kept by any number of replicas: a request that finds one idle takes "
            f"{1e3 * answer.alone:.1f} ms at the 99th percentile. Allow more, shorten the texts (--max-length of "
            "bei-compile), put fewer into a request, or take a faster device."
        )
    return f"p99 of {wanted} needs more replicas than anybody has. Allow more."


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 3)


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
