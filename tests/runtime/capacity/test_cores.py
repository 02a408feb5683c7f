"""Shared cores: how long work takes beside other work, by hand."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing

import pytest

from bei.runtime.capacity.cores import Cores
from bei.runtime.capacity.virtual_time import VirtualLoop

Work = Callable[[Cores], Awaitable[None]]


def ends(work: list[tuple[float, Work]], *, cores: int, engine_threads: int = 0) -> list[float]:
    """When each piece ends that begins at its moment."""
    loop = VirtualLoop()
    machine = Cores(loop, cores=cores, engine_threads=engine_threads)

    async def one(at: float, begin: Work) -> float:
        await asyncio.sleep(at)
        await begin(machine)
        return loop.time()

    async def main() -> list[float]:
        return list(await asyncio.gather(*(one(*each) for each in work)))

    with closing(loop):
        return loop.run_until_complete(main())


def thread(seconds: float) -> Work:
    return lambda machine: machine.thread(seconds)


def call(*seconds: float) -> Work:
    return lambda machine: machine.call(seconds)


def test_threads_share_the_cores_equally() -> None:
    assert ends([(0, thread(1)), (0, thread(1))], cores=2) == pytest.approx([1, 1])
    assert ends([(0, thread(1)), (0, thread(1))], cores=1) == pytest.approx([2, 2])
    assert ends([(0, thread(1)), (0, thread(2)), (0, thread(3))], cores=1) == pytest.approx([3, 5, 6])


def test_one_that_comes_later_slows_what_is_left() -> None:
    assert ends([(0, thread(2)), (1, thread(2))], cores=1) == pytest.approx([3, 4])


def test_calls_take_as_long_as_was_measured_with_so_many_in_flight() -> None:
    assert ends([(0, call(1, 1.5))], cores=1) == pytest.approx([1])
    assert ends([(0, call(1, 1.5)), (0, call(1, 1.5))], cores=1) == pytest.approx([1.5, 1.5])
    # The first is half done when the second comes; then both go at 1/1.5, the second alone at the end.
    assert ends([(0, call(1, 1.5)), (0.5, call(1, 1.5))], cores=1) == pytest.approx([1.25, 1.75])


def test_more_calls_than_were_measured_go_on_at_the_last_speed() -> None:
    assert ends([(0, call(1.0))] * 3, cores=1) == pytest.approx([1, 1, 1])


def test_a_gpu_leaves_the_cores_alone() -> None:
    assert ends([(0, call(1)), (0, thread(1))], cores=1) == pytest.approx([1, 1])


def test_an_engine_on_the_cpu_gives_way_to_threads() -> None:
    # Three threads on two cores: each at 2/3 of its speed, until the shorter is done.
    assert ends([(0, call(1)), (0, thread(0.5))], cores=2, engine_threads=2) == pytest.approx([1.25, 0.75])


def test_an_engine_rests_from_the_end_of_its_last_call() -> None:
    loop = VirtualLoop()
    machine = Cores(loop, cores=2, engine_threads=1)

    async def main() -> list[float]:
        seen = [machine.engine_rest]
        calls = [machine.call([1.0, 1.0]), machine.call([3.0, 3.0])]
        await calls[0]
        seen.append(machine.engine_rest)
        await calls[1]
        await machine.thread(0.5)
        return [*seen, machine.engine_rest]

    with closing(loop):
        assert loop.run_until_complete(main()) == pytest.approx([float("inf"), 0, 0.5])


def test_nothing_to_do_takes_no_time() -> None:
    assert ends([(0, thread(0)), (0, call(0, 0))], cores=1) == pytest.approx([0, 0])


def test_steps_too_small_for_the_clock_come_to_an_end() -> None:
    assert ends([(1e8, thread(1e-9))] * 3, cores=1) == pytest.approx([1e8] * 3)
