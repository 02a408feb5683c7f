"""One JSON line a request: ids, sizes and times, never a text."""

import sys
import time
from typing import BinaryIO

import msgspec

from bei.runtime.http.observe import Exchange


class AccessLog:
    """A watcher of exchanges that writes to ``stream`` (default: standard output)."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        self._stream = stream or sys.stdout.buffer

    def __call__(self, exchange: Exchange) -> None:
        record = exchange.record
        line = {
            "time": round(time.time(), 3),
            "request_id": exchange.id,
            "client": exchange.client,
            "method": exchange.method,
            "route": exchange.route,
            "status": exchange.status,
            "ms": _ms(exchange.seconds),
            "bytes": exchange.bytes,
        }
        if record.model:
            line["model"] = record.model
        if record.stages:
            line |= {
                "rows": record.rows,
                "tokens": record.tokens,
                "tokenize_ms": _ms(record.seconds("tokenize")),
                "queue_ms": _ms(record.seconds("queue")),
                "run_ms": _ms(record.seconds("run")),
            }
        self._stream.write(msgspec.json.encode(line) + b"\n")
        self._stream.flush()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
