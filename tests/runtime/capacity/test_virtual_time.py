"""Time that jumps, and worker threads that take turns."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import closing
from typing import Any, TypeVar

import pytest

from bei.runtime.capacity.virtual_time import Stalled, VirtualLoop, VirtualThreads

T = TypeVar("T")


def run(loop: VirtualLoop, main: Coroutine[Any, Any, T]) -> T:
    with closing(loop):
        return loop.run_until_complete(main)


def test_a_long_sleep_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.gather(asyncio.sleep(86400), asyncio.sleep(3600))
        return asyncio.get_running_loop().time()

    began = time.perf_counter()
    assert run(VirtualLoop(), main()) == pytest.approx(86400)
    assert time.perf_counter() - began < 3600


def test_timers_fire_in_their_order() -> None:
    seen: list[tuple[str, float]] = []

    async def after(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(after("c", 3), after("a", 1), after("b", 2))

    run(VirtualLoop(), main())
    assert [name for name, _ in seen] == ["a", "b", "c"]
    assert [at for _, at in seen] == pytest.approx([1, 2, 3])


def sleeping(loop: VirtualLoop, seconds: float) -> None:
    """In a worker."""
    timer = loop.create_future()
    loop.call_later(seconds, timer.set_result, None)
    loop.wait(timer)


def workers(threads: int, jobs: int) -> list[tuple[int, str, float]]:
    """Jobs of one second on so many threads: when each began and ended."""
    loop, log = VirtualLoop(), []

    def job(number: int) -> int:
        log.append((number, "begins", loop.time()))
        sleeping(loop, 1.0)
        log.append((number, "ends", loop.time()))
        return number

    async def main(pool: VirtualThreads) -> list[int]:
        futures = [pool.submit(job, number) for number in range(jobs)]
        await asyncio.sleep(jobs + 1)
        return [future.result(0) for future in futures]

    with VirtualThreads(loop, threads, "test") as pool:
        assert run(loop, main(pool)) == list(range(jobs))
    return log


def test_as_many_workers_at_once_as_the_pool_has_threads() -> None:
    log = workers(2, 5)
    begins, ends = ([(n, at) for n, kind, at in log if kind == what] for what in ("begins", "ends"))
    assert [n for n, _ in begins] == [n for n, _ in ends] == list(range(5))
    assert [at for _, at in begins] == pytest.approx([0, 0, 1, 1, 2])
    assert [at for _, at in ends] == pytest.approx([1, 1, 2, 2, 3])
    assert all(workers(2, 5) == log for _ in range(20))


def test_a_worker_that_fails_fails_its_future_alone() -> None:
    def broken() -> None:
        raise ValueError("boom")

    async def main(pool: VirtualThreads) -> int:
        with pytest.raises(ValueError, match="boom"):
            pool.submit(broken).result(0)
        return pool.submit(int, "7").result(0)

    loop = VirtualLoop()
    with VirtualThreads(loop, 1, "test") as pool:
        assert run(loop, main(pool)) == 7


def test_what_waits_for_a_thread_can_be_cancelled() -> None:
    ran: list[int] = []
    loop = VirtualLoop()

    def job(number: int) -> None:
        sleeping(loop, 1.0)
        ran.append(number)

    async def main(pool: VirtualThreads) -> None:
        for number in range(3):
            pool.submit(job, number)
        pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.sleep(5)

    run(loop, main(VirtualThreads(loop, 1, "test")))
    assert ran == [0]


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stalled, match="nothing is left to do"):
        run(VirtualLoop(), main())


def test_closing_releases_workers_that_wait() -> None:
    loop = VirtualLoop()
    released = threading.Event()

    def job() -> None:
        try:
            loop.wait(loop.create_future())
        finally:
            released.set()

    async def main(pool: VirtualThreads) -> "Future[None]":
        return pool.submit(job)

    with VirtualThreads(loop, 1, "test") as pool:
        future = run(loop, main(pool))
    assert released.wait(30)
    with pytest.raises(Stalled, match="closed"):
        future.result(30)
