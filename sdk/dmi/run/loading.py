"""Fetching the samples of leaves, here or ahead of time in processes of their own. Which one fetches changes nothing: a leaf's
samples are fetched on one thread, in random streams that are the leaf's."""

import ctypes
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from msgspec import Struct
from torch.utils.data import DataLoader

from dmi.errors import UsageError
from dmi.run.source import Source
from dmi_tensor import values
from dmi_tensor.random_streams import set_aside, sow_fetch
from dmi_tensor.values import CannotTravelError

_DEATHS = 3
"""So often in a row a loader process may die without having fetched anything."""
_PR_SET_PDEATHSIG = 1
_SMALL_BYTES = 1 << 20


class Request(Struct, frozen=True):
    """The samples at ``places``: a leaf's, or a part of them. ``key`` is (step, leaf) or (step, leaf, part), in whose order
    requests come; ``stream`` names the random streams in which they are fetched."""

    key: tuple[int, ...]
    places: Sequence[Any]
    stream: tuple[int | str, ...]


class Fetcher(Protocol):
    """Gives batches."""

    def get(self, request: Request) -> Any:
        """The batch. Raises ``UsageError``, and what the data set raises."""
        ...

    def close(self) -> None:
        """No more is wanted."""
        ...


class Here(Fetcher):
    """In this process, when it is asked."""

    def __init__(self, source: Source, seed: int) -> None:
        self._source, self._seed = source, seed

    def get(self, request: Request) -> Any:
        """See ``Fetcher``."""
        threads = torch.get_num_threads()
        if threads == 1:
            return self._get(request)
        torch.set_num_threads(1)
        try:
            return self._get(request)
        finally:
            torch.set_num_threads(threads)

    def _get(self, request: Request) -> Any:
        sow_fetch(self._seed, *request.stream)
        return self._source.fetch(request.places)

    def close(self) -> None:
        """See ``Fetcher``."""


class _InLoader(torch.utils.data.Dataset[tuple[tuple[int, ...], Any, str]]):
    """What a loader process does: a request's batch, or the line with which it is refused."""

    def __init__(self, fetcher: Here) -> None:
        self._fetcher = fetcher
        self._is_small = True

    def __getitem__(self, request: Request) -> tuple[tuple[int, ...], Any, str]:
        try:
            return request.key, self._sent(self._fetcher.get(request)), ""
        except UsageError as error:
            return request.key, None, str(error)

    def _sent(self, batch: Any) -> Any:
        """Small batches go through the pipe; torch shares memory for the others, and asks this process for each piece of it."""
        if self._is_small:
            with suppress(CannotTravelError):
                packed = values.pack(batch)
                self._is_small = len(packed) <= _SMALL_BYTES
                return _Small(packed)
        return batch


class _Small(Struct, frozen=True):
    """A batch, packed."""

    data: bytes


def _received(batch: Any) -> Any:
    return values.unpack(batch.data) if isinstance(batch, _Small) else batch


class _Stream:
    """What is asked for ahead of time, in the place of a sampler."""

    def __init__(self, requests: Iterator[Request], asked: set[tuple[int, ...]]) -> None:
        self._requests, self._asked = requests, asked

    def __iter__(self) -> Iterator[Request]:
        for request in self._requests:
            self._asked.add(request.key)
            yield request


class Loaders(Fetcher):
    """In processes that are forked for one pass: torch's own ``DataLoader``, which is asked for leaves.

    ``ahead(request)`` gives the requests that are likely to come from that one on, in order. What was not expected is fetched
    here; a process that died is replaced, and what it had is fetched again.
    """

    def __init__(self, source: Source, seed: int, ahead: Callable[[Request], Iterator[Request]]) -> None:
        self._here = Here(source, seed)
        self._source, self._ahead = source, ahead
        self._asked: set[tuple[int, ...]] = set()
        self._early: dict[tuple[int, ...], Any] = {}
        self._batches: Iterator[Any] | None = None

    def get(self, request: Request) -> Any:
        """See ``Fetcher``."""
        deaths = 0
        while True:
            try:
                return self._get(request)
            except RuntimeError:
                if not self._has_died():
                    raise
                deaths += 1
                self.close()
                if deaths == _DEATHS:
                    raise UsageError(
                        f"a loader process ended {deaths} times while it fetched the samples of step {request.key[0]}: it may "
                        "have too little memory, or be ended by the data set's own code; try workers=0 to see"
                    ) from None

    def _get(self, request: Request) -> Any:
        if self._batches is None:
            self._batches = self._begin(request)
        self._early = {key: batch for key, batch in self._early.items() if key[0] >= request.key[0]}
        while request.key in self._asked:
            key, batch, refusal = next(self._batches)
            self._asked.discard(key)
            if refusal and key == request.key:
                raise UsageError(refusal)
            if not refusal and key[0] >= request.key[0]:
                self._early[key] = _received(batch)
        return self._early.pop(request.key) if request.key in self._early else self._here.get(request)

    def _begin(self, request: Request) -> Iterator[Any]:
        own = signal.getsignal(signal.SIGCHLD)
        with warnings.catch_warnings(), set_aside():
            warnings.simplefilter("ignore")  # there are as many as were asked for
            batches = iter(self._loader(request))
        with suppress(ValueError, TypeError):  # not in the main thread, or a handler that Python did not set
            signal.signal(signal.SIGCHLD, own)  # torch's would raise anywhere in the script when a process has died
        return batches

    def _loader(self, request: Request) -> DataLoader[Any]:
        return DataLoader(
            _InLoader(self._here),
            batch_size=None,
            sampler=_Stream(self._ahead(request), self._asked),
            num_workers=self._source.workers,
            prefetch_factor=self._source.prefetch,
            collate_fn=_unchanged,
            worker_init_fn=_end_with_parent,
            multiprocessing_context="fork",
            generator=torch.Generator(),
        )

    def _has_died(self) -> bool:
        return any(not process.is_alive() for process in getattr(self._batches, "_workers", ()))

    def close(self) -> None:
        """See ``Fetcher``."""
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        self._batches = None
        self._asked.clear()
        self._early.clear()
        if shut_down is not None:
            shut_down()


def fetcher_of(source: Source, seed: int, ahead: Callable[[Request], Iterator[Request]]) -> Fetcher:
    """As many processes as the source says, or this one; see ``Loaders`` for ``ahead``."""
    return Loaders(source, seed, ahead) if source.workers else Here(source, seed)


def _unchanged(batch: Any) -> Any:
    return batch


def _end_with_parent(_number: int) -> None:
    """Also when the parent is killed."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
