"""The seam to Ray: map tasks over shards, and services whose state is rebuilt from files.

Each has an in-process twin with the same results, so that a laptop needs no cluster and a test
can hold one against the other. `import ray` stands here alone (and in finetune/distributed.py).
"""

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_IN_FLIGHT_PER_WORKER = 2  # enough to keep a worker busy, few enough to bound the driver's memory


class ServiceHandle(Protocol):
    """A restartable object somewhere else. Its constructor rebuilds its state from files."""

    def call(self, method: str, *args: Any) -> Any: ...
    def stop(self) -> None: ...


class Runtime(Protocol):
    """Where tasks run."""

    num_workers: int

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """Yield (index, result) as they complete. A task that raises ends the map with its error;
        one whose worker died is run again."""
        ...

    def service(self, factory: Callable[..., Any], *args: Any) -> ServiceHandle: ...


@contextlib.contextmanager
def open_runtime(config: RunConfig) -> Generator[Runtime]:
    """The runtime that [run] asks for, closed behind you."""
    if config.backend == "local" and config.workers == 1:
        yield InlineRuntime()
        return
    kind = RayRuntime if config.backend == "ray" else PoolRuntime
    runtime = kind(config.workers)
    try:
        yield runtime
    finally:
        runtime.close()


class InlineRuntime:
    """One task after another in this process."""

    num_workers = 1

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        for index, item in enumerate(items):
            yield index, function(item)

    def service(self, factory: Callable[..., Any], *args: Any) -> ServiceHandle:
        return _LocalService(factory(*args))


class PoolRuntime:
    """Tasks in child processes of this one (spawned: lxml and torch do not survive a fork)."""

    max_pool_restarts = 3

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        waiting = list(range(len(items)))
        for _attempt in range(self.max_pool_restarts + 1):
            finished: set[int] = set()
            try:
                for index, result in self._map_once(function, items, waiting):
                    finished.add(index)
                    yield index, result
                return
            except BrokenProcessPool:
                self.close()
                waiting = [index for index in waiting if index not in finished]
        raise RuntimeError(
            f"workers died {self.max_pool_restarts + 1} times; {len(waiting)} tasks are not done"
        )

    def _map_once(
        self, function: Callable[[T], R], items: Sequence[T], order: Sequence[int]
    ) -> Iterator[tuple[int, R]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.num_workers, mp_context=context)
        running: dict[Future[R], int] = {}
        upcoming = iter(order)
        try:
            while True:
                while len(running) < self.num_workers * _IN_FLIGHT_PER_WORKER:
                    index = next(upcoming, None)
                    if index is None:
                        break
                    running[self._pool.submit(function, items[index])] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            for future in running:
                future.cancel()

    def service(self, factory: Callable[..., Any], *args: Any) -> ServiceHandle:
        return _LocalService(factory(*args))


class _LocalService:
    def __init__(self, target: Any) -> None:
        self._target = target

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._target, method)(*args)

    def stop(self) -> None:
        self._target = None


class RayRuntime:
    """Tasks on a Ray cluster: the one in RAY_ADDRESS or of this Ray job, else a local one that
    starts with the first task (5 s: a run with nothing to do should not pay them)."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self._connected: Any = None

    @property
    def ray(self) -> Any:
        if self._connected is None:
            self._connected = _connect(self.num_workers)
        return self._connected

    def close(self) -> None:
        if self._connected is not None:
            self._connected.shutdown()
            self._connected = None

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        if not items:
            return
        task = self.ray.remote(max_retries=3)(function)
        running: dict[Any, int] = {}
        upcoming = iter(range(len(items)))
        while True:
            while len(running) < self.num_workers * _IN_FLIGHT_PER_WORKER:
                index = next(upcoming, None)
                if index is None:
                    break
                running[task.remote(items[index])] = index
            if not running:
                return
            ready, _ = self.ray.wait(list(running), num_returns=1)
            for reference in ready:
                yield running.pop(reference), self.get(reference)

    def service(self, factory: Callable[..., Any], *args: Any) -> ServiceHandle:
        actor = self.ray.remote(max_restarts=-1, max_task_retries=3)(_ServiceActor)
        return _RayService(self, actor.remote(factory, args))

    def get(self, reference: Any) -> Any:
        """The task's result, or the error it raised as it raised it."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None


class _ServiceActor:
    def __init__(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._target = factory(*args)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self._target, method)(*args)


class _RayService:
    def __init__(self, runtime: RayRuntime, actor: Any) -> None:
        self._runtime, self.actor = runtime, actor

    def call(self, method: str, *args: Any) -> Any:
        return self._runtime.get(self.actor.call.remote(method, args))

    def stop(self) -> None:
        self._runtime.ray.kill(self.actor)


def _connect(num_workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # leave the GPUs visible
    try:
        import ray  # 0.3 s, and an extra: only who asks for this backend pays
    except ModuleNotFoundError:
        raise UserError(
            'run.backend = "ray" needs Ray: pip install "flywheel-llm[pipeline]",'
            ' or set run.backend = "local"'
        ) from None
    by_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if by_job or "RAY_ADDRESS" in os.environ:
        # Every node needs this code: a Ray job has brought it along, a plain driver ships it.
        root = Path(__file__).resolve().parents[2]
        ray.init(runtime_env=None if by_job else {"working_dir": str(root)}, log_to_driver=False)
    else:
        ray.init(
            num_cpus=num_workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return ray
