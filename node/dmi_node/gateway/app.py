"""What a gateway answers: the Open Inference Protocol, a plain ``:predict``, metrics, and a description of itself."""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from dmi_node.gateway import plain, v2
from dmi_node.gateway.access import demand_token
from dmi_node.gateway.contract import Contract, Inputs, shown
from dmi_node.gateway.describe import document
from dmi_node.gateway.http import Exchange, HttpError, Request
from dmi_node.gateway.offer import Offer
from dmi_node.gateway.replicas import Outcome, Replicas
from dmi_node.gateway.statistics import Statistics
from dmi_node.gateway.tensors import GivenTensor
from dmi_protocol import limits
from dmi_protocol.messages.roles import Access, GatewayLaunch
from dmi_protocol.model import ModelRef
from dmi_protocol.serving.datatypes import DATATYPES
from dmi_protocol.serving.events import Full, Killed, Refusal, Rejected, TooLate

_EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository", "statistics"]
_PLATFORMS = {"torchscript": "pytorch_torchscript", "exported": "pytorch_exported", "factory": "pytorch"}
_METRICS = b"text/plain; version=0.0.4; charset=utf-8"
_HTML = b"text/html; charset=utf-8"
_OPEN = {b"/v2/health/live", b"/v2/health/ready"}
"""A balancer may look whether we live."""
Wanted = Callable[[tuple[GivenTensor, ...], str], v2.Written]


class Place(NamedTuple):
    """What an address of the protocol names: ``/v2/models/NAME/versions/VERSION/WHAT``."""

    model: str
    version: str | None
    what: str


class App:
    """``handle`` is what the HTTP server calls."""

    def __init__(self, launch: GatewayLaunch, offer: Offer, replicas: Replicas, statistics: Statistics) -> None:
        self._model = offer.name
        self._launch = launch
        self._offer = offer
        self._replicas = replicas
        self._statistics = statistics
        self._infer = f"/v2/models/{self._model}/infer".encode()
        self.access: Callable[[], Access] | None = None
        """Whom to let in, where not everybody may ask."""
        self.is_leaving = False
        """Who asks whether it is ready is sent elsewhere."""

    def admit(self, request: Request) -> None:
        """Raises ``HttpError`` for who may not ask; the head of the request is enough."""
        if self.access is not None and request.path.partition(b"?")[0] not in _OPEN:
            demand_token(request, self.access())

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer one request, now or later. Raises ``HttpError``."""
        self.admit(request)
        path = request.path.partition(b"?")[0]
        if path == self._infer:
            self._ask(request, exchange, "infer", None)
            return
        parts = [_decoded(part) for part in path.strip(b"/").split(b"/")]
        match parts:
            case ["v2", *rest]:
                self._v2(rest, request, exchange)
            case ["v1", "models", named] if named.endswith(":predict"):
                self._demand_model(named.removesuffix(":predict"), None)
                self._ask(request, exchange, "predict", None)
            case ["v1", "models", name]:
                self._demand_model(name, None)
                exchange.json({"name": name, "ready": self.is_ready})
            case [""]:
                exchange.json({"status": "alive", "docs": "/docs"})  # as version 1 of the protocol asks whether we live
            case ["metrics"]:
                text = self._statistics.metrics(self._replicas.able, self._replicas.waiting)
                exchange.reply(200, text.encode(), _METRICS)
            case ["docs"]:
                exchange.reply(200, plain.page(self._model, self._offer.contract), _HTML)
            case ["openapi.json"]:
                exchange.json(document(self._model, self._offer.contract))
            case _:
                raise HttpError(404, f"nothing is at {path.decode('latin-1')[:200]!r}; GET /docs says what is")

    @property
    def is_ready(self) -> bool:
        """Would a request be computed at once?"""
        return self._replicas.able > 0 and not self.is_leaving

    # The protocol

    def _v2(self, rest: list[str], request: Request, exchange: Exchange) -> None:
        match rest:
            case []:
                exchange.json({"name": "dmi", "version": version("dmi"), "extensions": _EXTENSIONS})
            case ["health", "live"]:
                exchange.json({"live": True})
            case ["health", "ready"]:
                exchange.json({"ready": self.is_ready}, 200 if self.is_ready else 503)
            case ["models", "stats"]:
                exchange.json(self._stats())
            case ["repository", "index"]:
                _demand(request, b"POST")
                exchange.json([self._indexed(ref) for ref in self._offer.versions.all])
            case ["repository", "models", name, "load" | "unload" as what]:
                _demand(request, b"POST")
                self._load(name, what, exchange)
            case ["models", name, "versions", number, *what] if len(what) <= 1:
                self._of_model(Place(name, number, what[0] if what else ""), request, exchange)
            case ["models", name, *what] if len(what) <= 1:
                self._of_model(Place(name, None, what[0] if what else ""), request, exchange)
            case _:
                raise HttpError(404, f"nothing is at /v2/{'/'.join(rest)[:200]}; GET /docs says what is")

    def _of_model(self, place: Place, request: Request, exchange: Exchange) -> None:
        ref = self._demand_model(place.model, place.version)
        match place.what:
            case "":
                exchange.json(self._metadata(ref))
            case "ready":
                is_ready = self.is_ready and (place.version is None or ref.id in self._replicas.versions)
                exchange.json({"name": self._model, "ready": is_ready}, 200 if is_ready else 503)
            case "infer":
                self._ask(request, exchange, "infer", place.version)
            case "config":
                exchange.json(self._config(ref))
            case "stats":
                exchange.json(self._stats())
            case _:
                raise HttpError(404, f"a model has no {place.what[:80]!r}; GET /docs says what it has")

    def _demand_model(self, name: str, number: str | None) -> ModelRef:
        if name != self._model:
            raise HttpError(404, f"no model {name[:80]!r} is served here; {self._model!r} is")
        return self._offer.ref(number)

    def _metadata(self, ref: ModelRef) -> dict[str, Any]:
        inputs, outputs = (
            [{"name": i.name, "datatype": DATATYPES.get(i.dtype, i.dtype), "shape": shown(i)} for i in infos]
            for infos in (ref.content.inputs, ref.content.outputs)
        )
        return {
            "name": self._model,
            "versions": [_number(each) for each in self._offer.versions.all],
            "platform": _PLATFORMS[ref.content.format],
            "inputs": inputs,
            "outputs": outputs,
        }

    def _config(self, ref: ModelRef) -> dict[str, Any]:
        is_batched = Contract(ref.content).is_batched
        inputs, outputs = (
            [
                {
                    "name": info.name,
                    "data_type": f"TYPE_{DATATYPES.get(info.dtype, info.dtype)}",
                    "dims": shown(info)[1:] if is_batched else shown(info),
                }
                for info in infos
            ]
            for infos in (ref.content.inputs, ref.content.outputs)
        )
        return {
            "name": self._model,
            "platform": _PLATFORMS[ref.content.format],
            "backend": "pytorch",
            "max_batch_size": self._launch.max_batch if is_batched else 0,
            "dynamic_batching": {"max_queue_delay_microseconds": self._launch.max_wait_ms * 1000},
            "input": inputs,
            "output": outputs,
            "parameters": {"exact": {"string_value": str(self._launch.exact).lower()}},
        }

    def _stats(self) -> dict[str, Any]:
        counted = self._statistics
        done = counted.seconds.total
        failed = counted.answers.total() - done

        def part(count: int, nanoseconds: int) -> dict[str, int]:
            return {"count": count, "ns": nanoseconds}

        mine = {
            "name": self._model,
            "version": _number(self._offer.current),
            "last_inference": counted.last_at_ms,
            "inference_count": counted.rows,
            "execution_count": counted.batches.total,
            "inference_stats": {
                "success": part(done, counted.queue_ns + counted.compute_ns),
                "fail": part(failed, counted.failed_ns),
                "queue": part(done, counted.queue_ns),
                "compute_input": part(done, 0),
                "compute_infer": part(done, counted.compute_ns),
                "compute_output": part(done, 0),
                "cache_hit": part(0, 0),
                "cache_miss": part(0, 0),
            },
            "batch_stats": [],
        }
        return {"model_stats": [mine]}

    def _indexed(self, ref: ModelRef) -> dict[str, str]:
        is_there = self.is_ready and ref.id in self._replicas.versions
        state, reason = ("READY", "") if is_there else ("UNAVAILABLE", "no replica has it in memory now")
        return {"name": self._model, "version": _number(ref), "state": state, "reason": reason}

    def _load(self, name: str, what: str, exchange: Exchange) -> None:
        if what == "load" and name == self._model:
            exchange.json({})
            return
        verb = f"dmi-node serve {name[:80]}" if what == "load" else f"dmi-node unserve {name[:80]}"
        raise HttpError(400, f"the mesh decides what is served, not one gateway of it: `{verb}`")

    # What is computed

    def _ask(self, request: Request, exchange: Exchange, what: str, number: str | None) -> None:
        """Read it, have it computed, and answer when it is."""
        begun_at = time.monotonic()
        try:
            _demand(request, b"POST")
            choice = self._offer.choose(number, self._replicas.versions)
            inputs, within_ms, write = self._read(request, what, choice.contract)
        except HttpError as error:
            self._statistics.answered(error.status, time.monotonic() - begun_at, 0, 0)
            raise
        done = partial(self._answer, exchange, begun_at, inputs.rows, write)
        name = self._replicas.ask(inputs, choice, within_ms, done)
        exchange.on_gone = partial(self._replicas.abandon, name)

    def _read(self, request: Request, what: str, contract: Contract) -> tuple[Inputs, int, Wanted]:
        if what == "predict":
            inputs = plain.read(request, contract)
            return inputs, _within_ms(request, None), plain.write
        inputs, wanted = v2.read(request, contract)
        return inputs, _within_ms(request, wanted.within_ms), lambda t, v: v2.write(self._model, v, t, wanted)

    def _answer(self, exchange: Exchange, begun_at: float, rows: int, write: Wanted, outcome: Outcome) -> None:
        now = time.monotonic()
        waited_s = (outcome.begun_at or now) - begun_at
        if outcome.refusal is not None:
            error = _refused(outcome.refusal)
            self._statistics.answered(error.status, now - begun_at, rows, waited_s)
            exchange.refuse(error)
            return
        written = write(outcome.tensors, outcome.version.rpartition(":")[2])
        self._statistics.answered(200, now - begun_at, rows, waited_s)
        exchange.reply(200, written.body, written.kind, written.headers)


def _number(ref: ModelRef) -> str:
    return ref.id.rpartition(":")[2]


def _refused(why: Refusal) -> HttpError:
    match why:
        case Rejected(text):
            return HttpError(400, f"the model does not take these inputs: {text}")
        case Full():
            return HttpError(429, "this gateway has as many requests as it can hold; ask again", retry_after_s=1)
        case Killed(deaths):
            text = f"this request ended {deaths} processes that computed it, one after another, and is not tried again"
            return HttpError(500, text)
        case TooLate(has_replica):
            if has_replica:
                return HttpError(504, "the request was not computed in its time")
            return HttpError(503, "no replica could be reached in the time of the request", retry_after_s=1)


def _within_ms(request: Request, said: int | None) -> int:
    """The header says seconds; what the body says counts more."""
    header = request.headers.get(b"timeout")
    if said is None and header is not None:
        try:
            said = int(float(header) * 1000)
        except (ValueError, OverflowError):
            raise HttpError(400, f"Timeout: {header[:40]!r} is no number of seconds") from None
    if said is None:
        return limits.REQUEST_MS
    return min(max(said, 1), limits.REQUEST_MOST_MS)


def _demand(request: Request, method: bytes) -> None:
    if request.method != method:
        raise HttpError(405, f"{request.method.decode('latin-1')[:20]} is not known here; {method.decode()} is")


def _decoded(part: bytes) -> str:
    """A part of an address; what is no UTF-8 names nothing."""
    return unquote_to_bytes(part).decode(errors="replace")
