"""The seam to Ray: map tasks over shards, and services whose state is rebuilt from files.

Each has an in-process twin with the same results, so that a laptop needs no cluster and a test
can hold one against the other. `import ray` stands here alone (and in finetune/distributed.py).
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.core.config import RunConfig
from pipeline.core.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
_NODE_LOSS_S = 300.0
_IN_FLIGHT_PER_WORKER = 2  # enough to keep a worker busy, few enough to bound the driver's memory


class WorkerLostError(RuntimeError):
    """Who works has gone, and nothing will bring it back; the same command goes on from the files.

    The command line prints it as one line and exits with 1."""


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
    except BaseException:
        runtime.abort()
        raise
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
        self._lifeline: Any = None  # our end of a pipe: the workers live as long as it is open

    def close(self) -> None:
        """Let the running tasks end, and the workers with them."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._lifeline.close()
            self._pool = None

    def abort(self) -> None:
        """End the workers now, whatever they are doing: what is half done has no receipt."""
        if self._pool is not None:
            self._lifeline.close()
        self.close()

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
        raise WorkerLostError(
            f"workers died {self.max_pool_restarts + 1} times; {len(waiting)} tasks are not done"
        )

    def _map_once(
        self, function: Callable[[T], R], items: Sequence[T], order: Sequence[int]
    ) -> Iterator[tuple[int, R]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            theirs, self._lifeline = context.Pipe(duplex=False)
            self._pool = ProcessPoolExecutor(
                self.num_workers,
                mp_context=context,
                initializer=_live_as_long_as,
                initargs=(theirs,),
            )
        running: dict[Future[R], int] = {}
        upcoming = iter(order)
        try:
            while True:
                while len(running) < self.num_workers * _IN_FLIGHT_PER_WORKER:
                    index = next(upcoming, None)
                    if index is None:
                        break
                    with _no_interrupt():  # `submit` starts the workers
                        future = self._pool.submit(function, items[index])
                    running[future] = index
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BaseException:  # GeneratorExit, too: nobody waits for the rest
            self.abort()  # and no future.cancel(): the pool trips over one when its worker dies
            raise

    def service(self, factory: Callable[..., Any], *args: Any) -> ServiceHandle:
        return _ProcessService(factory, args)


@contextlib.contextmanager
def _no_interrupt() -> Generator[None]:
    """A child that is started meanwhile does not hear Ctrl-C, not even before its first line:
    the terminal sends it to all of us, and the parent is to answer. We hear it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live_as_long_as(lifeline: Any) -> None:
    """In a child: be deaf to Ctrl-C, and end as soon as the other end of the pipe is closed,
    be it by the parent or, if the parent was killed, by the system."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def watch() -> None:
        connection.wait([lifeline])
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


class _LocalService:
    def __init__(self, target: Any) -> None:
        self._target = target

    def call(self, method: str, *args: Any) -> Any:
        return getattr(self._target, method)(*args)

    def stop(self) -> None:
        self._target = None


class _ProcessService:
    """A service in a child process; one that died is made anew by the next call."""

    max_restarts = 100

    def __init__(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._factory, self._args = factory, args
        self._context = multiprocessing.get_context("spawn")
        self.num_restarts = -1
        self._start()

    def _start(self) -> None:
        self.num_restarts += 1
        if self.num_restarts > self.max_restarts:
            raise WorkerLostError(
                f"a service died {self.num_restarts} times; the last is not restarted"
            )
        self._pipe, theirs = self._context.Pipe()
        self.process = self._context.Process(
            target=_serve, args=(theirs, self._factory, self._args), daemon=True
        )
        with _no_interrupt():
            self.process.start()
        theirs.close()

    def call(self, method: str, *args: Any) -> Any:
        while True:
            try:
                self._pipe.send((method, args))
                done, result = self._pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                self._start()
                continue
            if not done:
                raise result
            return result

    def stop(self) -> None:
        self._pipe.close()  # the child's next look at the pipe ends it
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """A child's life: calls from the pipe until it closes. Ctrl-C is for the parent to hear."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    _live_as_long_as(parent.sentinel)  # in the middle of a call, too
    target: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, given = pipe.recv()
            try:
                target = factory(*args) if target is None else target
                answer = (True, getattr(target, method)(*given))
            except Exception as error:  # noqa: BLE001 - raised again where it was asked for
                answer = (False, error)
            pipe.send(answer)


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

    abort = close  # Ray ends the tasks of a driver that leaves

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
        # Spread: services of one kind are to share their machines' network, not one machine's.
        options = {"max_restarts": -1, "max_task_retries": 3, "scheduling_strategy": "SPREAD"}
        actor = self.ray.remote(**options)(_ServiceActor)
        return _RayService(self, actor.remote(factory, args))

    def get(self, reference: Any) -> Any:
        """The task's result, or the error it raised as it raised it. Raises WorkerLostError if it
        can have none any more, ActorUnavailableError if it may later."""
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        except errors.ActorUnavailableError:
            raise
        except errors.RayError as error:
            raise _lost(error) from error


class _ServiceActor:
    def __init__(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._target = factory(*args)

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        return getattr(self._target, method)(*args)


class _RayService:
    def __init__(self, runtime: RayRuntime, actor: Any) -> None:
        self._runtime, self.actor = runtime, actor

    def call(self, method: str, *args: Any) -> Any:
        """Waits out the death of the service's node: Ray itself gives up at once, though the
        service will be back on another one (25 s after a power cut, tests/cluster)."""
        unavailable = self._runtime.ray.exceptions.ActorUnavailableError
        deadline = time.monotonic() + _NODE_LOSS_S
        while True:
            try:
                return self._runtime.get(self.actor.call.remote(method, args))
            except unavailable as error:
                if time.monotonic() > deadline:
                    raise _lost(error) from error
                time.sleep(1.0)

    def stop(self) -> None:
        self._runtime.ray.kill(self.actor)


def _lost(error: Exception) -> WorkerLostError:
    said = " ".join(str(error).split())
    return WorkerLostError(
        f"a worker or the Ray cluster was lost ({type(error).__name__}: {said[:200]})"
    )


@contextlib.contextmanager
def _own_signals() -> Generator[None]:
    """Ray sets handlers of its own, which end the process: what ours had to do in the end would be
    left undone. Where there were none, Ray's stay."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if callable(handler) or handler is signal.SIG_IGN:
                    signal.signal(number, handler)


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
        runtime_env = None if by_job else {"working_dir": str(root)}
        with _own_signals():
            ray.init(runtime_env=runtime_env, log_to_driver=False)
    else:
        with _own_signals():
            ray.init(
                num_cpus=num_workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    return ray
