"""What a response's headers tell about the work behind it, beside the times that `Observe` adds to every response."""

from bei.runtime.http.operation import Answer

DETAIL = "x-truncation-detail"
"""A request header: any value but "false" and "0" asks for `x-truncated-rows`."""


def report(answer: Answer, detail: str | None) -> dict[str, str]:
    """TEI's headers; ``x-truncated`` counts the inputs that lost tokens, ``x-truncated-rows`` says which and how many:
    ``index:tokens,…``."""
    service, work = answer.service, answer.work
    if service is None or work is None:
        return {}
    on_cpu = service.model.choice.record.device == "cpu"
    headers = {
        "x-compute-type": "cpu" if on_cpu else "gpu+optimized",
        "x-compute-characters": str(work.characters),
    }
    if work.truncated:
        headers["x-truncated"] = str(work.truncated)
        if detail not in (None, "", "0", "false"):
            lost = (f"{index}:{count}" for index, count in enumerate(work.dropped) if count)
            headers["x-truncated-rows"] = ",".join(lost)
    return headers
