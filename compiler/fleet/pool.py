"""Work on this machine: some processes at a time, as many as its memory holds."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import msgspec

from bei.compiler.fleet.child import GRACE
from bei.compiler.fleet.work import Answer, Work
from bei.runtime.cpu import usable_cpus

MODULE = "bei.compiler.fleet.child"
THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """``workers`` processes at most, which together may take ``memory`` bytes (None: not known); one alone is always
    tried. ``fresh``: a new process for every unit, which gives all its memory back; else processes are used again."""

    workers: int
    memory: int | None
    fresh: bool

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Answer]]:
        """See `Machine.run`; units start in their order."""
        threads_each = max(1, usable_cpus() // self.workers)
        running: dict[Future[Answer], Work] = {}
        with (
            ThreadPoolExecutor(self.workers, "bei-fleet") as threads,
            contextlib.closing(_Children(fresh=self.fresh, threads=threads_each)) as children,
        ):
            for work in works:
                while running and not self._has_room(work, running.values()):
                    yield from _finished(running)
                running[threads.submit(children.ask, work.request)] = work
            while running:
                yield from _finished(running)

    def _has_room(self, work: Work, running: Iterable[Work]) -> bool:
        others = list(running)
        if len(others) >= self.workers or (work.gpu and any(other.gpu for other in others)):
            return False
        return self.memory is None or work.memory + sum(other.memory for other in others) <= self.memory


def _finished(running: dict[Future[Answer], Work]) -> Iterator[tuple[Work, Answer]]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        yield running.pop(future), future.result()


class _Children:
    """Processes, idle and at work."""

    def __init__(self, *, fresh: bool, threads: int) -> None:
        self._fresh, self._threads = fresh, threads
        self._lock = threading.Lock()
        self._all: set[_Child] = set()
        self._idle: list[_Child] = []
        self._closed = False

    def close(self) -> None:
        """End all processes; those at work are interrupted."""
        with self._lock:
            self._closed = True
            children = list(self._all)
        for child in children:
            child.let_go()
        for child in children:
            child.stop()
        for child in self._idle:
            child.close()

    def ask(self, request: bytes) -> Answer:
        """The answer of some process; called in a thread of its own."""
        child = self._take()
        if child is None:
            return Answer(lost="interrupted")
        answer = child.ask(request)
        with self._lock:
            if answer is not None and not self._fresh and not self._closed:
                self._idle.append(child)
                return answer
        child.stop()
        with self._lock:
            self._all.remove(child)
        why = child.close()
        return answer or Answer(lost=why)

    def _take(self) -> "_Child | None":
        with self._lock:
            if self._closed:
                return None
            child = self._idle.pop() if self._idle else _Child(self._threads)
            self._all.add(child)
            return child


class _Child:
    """One process, and what it says besides its answers (the end of it tells why it died)."""

    def __init__(self, threads: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env={THREADS: str(threads), **os.environ},
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )

    def ask(self, request: bytes) -> Answer | None:
        """None where the process ended instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(request + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # it is dead, or we have let it go
            return None
        line = self._process.stdout.readline()
        return msgspec.json.decode(line, type=Answer) if line.endswith(b"\n") else None

    def let_go(self) -> None:
        """No more requests: it ends, and interrupts what it is doing."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def stop(self) -> None:
        """Wait for the end, or bring it about."""
        self.let_go()
        try:
            self._process.wait(GRACE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> str:
        """After the end: why it came."""
        assert self._process.stdout is not None
        self._process.stdout.close()
        with self._said as file:
            file.seek(0)
            lines = file.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        guess = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"its process {how}{guess}" + (f": {lines[-1].strip()}" if lines else "")
