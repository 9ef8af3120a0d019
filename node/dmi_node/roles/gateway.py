"""The gateway's process: ``python -m dmi_node.roles.gateway``, a child of the daemon. It never imports torch."""

import asyncio
import os
import signal
import ssl
import traceback
from random import Random
from typing import NoReturn

import uvloop
import zmq

from dmi_node.gateway.access import is_open
from dmi_node.gateway.app import App
from dmi_node.gateway.http import Server
from dmi_node.gateway.offer import Offer
from dmi_node.gateway.replicas import Replicas
from dmi_node.gateway.statistics import Statistics
from dmi_protocol import limits
from dmi_protocol.messages.roles import Bound, GatewayLaunch, Wanted
from dmi_protocol.serving.router import RouterSettings
from dmi_wire.bulk import Context
from dmi_wire.child import Child
from dmi_wire.keys import KeyPair

_PORTS = 100
"""So many ports are tried, where the first is taken and the deployment may move."""
_LEAVE_S = 2.5
"""So long the last requests may take."""


class PortError(Exception):
    """Nothing can be listened on. The text says where, and why."""


class Gateway:
    """One."""

    def __init__(self, child: Child, launch: GatewayLaunch, context: Context) -> None:
        self._child = child
        self._launch = launch
        self._keys = KeyPair.make()
        self._statistics = Statistics(launch.model.id.partition(":")[0])
        offer = Offer(launch.model, Random())
        stages = len(launch.model.content.stages) or 1
        settings = RouterSettings(launch.max_batch, launch.max_wait_ms, launch.exact, stages)
        computed = self._statistics.batches.add
        self._replicas = Replicas(offer, settings, launch.key, launch.node, context, self._keys, computed)
        self._app = App(launch, offer, self._replicas, self._statistics)
        if not is_open(launch.host):
            self._app.access = lambda: child.access
        self._asked_for = 0
        """How often it was said that there is no replica."""
        self._replicas.wanted = self._want
        self._server = Server(self._app.handle, _print, self._app.admit)
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Until it is stopped, and has answered whom it could. Raises ``PortError``."""
        loop = asyncio.get_running_loop()
        port = await self._listen()
        loop.add_signal_handler(signal.SIGTERM, self._ended.set)
        loop.add_reader(self._child.fd, self._hear)
        self._child.tell(Bound(f"{self._launch.host}:{port}", self._keys.public, os.getpid()))
        telling = loop.create_task(self._tell())
        await self._ended.wait()
        self._app.is_leaving = True
        self._server.stop_listening()
        until = loop.time() + limits.STOP_MS / 1000
        await self._replicas.drain(_LEAVE_S)
        await self._server.until_taken(until - loop.time())
        telling.cancel()
        loop.remove_reader(self._child.fd)
        self._server.close()
        self._replicas.close()

    async def _listen(self) -> int:
        first, tls = self._launch.port, _tls(self._launch)
        for port in range(first, min(first + (_PORTS if self._launch.may_move else 1), 65_536)):
            try:
                await self._server.listen(self._launch.host, port, tls)
            except OSError as error:
                cause = error
            else:
                return port
        raise PortError(f"cannot listen on {self._launch.host}:{first}: {cause.strerror or cause}")

    def _want(self) -> None:
        self._asked_for += 1
        self._child.tell(Wanted(self._asked_for))

    def _hear(self) -> None:
        fleet = self._child.fleet()
        if fleet is not None:
            self._replicas.told(fleet)

    async def _tell(self) -> None:
        """How it does, while that changes."""
        last = None
        while True:
            await asyncio.sleep(limits.SERVED_MS / 1000)
            served = self._statistics.served(self._replicas.busy)
            if served != last:
                last = served
                self._child.tell(served)


class CertificateError(Exception):
    """The files for TLS cannot be used. The text says which, and why."""


def _tls(launch: GatewayLaunch) -> ssl.SSLContext | None:
    """Raises ``CertificateError``."""
    if not launch.certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(launch.certificate, launch.certificate_key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateError(f"{launch.certificate} and {launch.certificate_key}: {error}") from error
    return context


def _print(error: BaseException) -> None:
    """A bug of ours: into the log."""
    traceback.print_exception(error)


def main() -> None:
    """The process."""
    child = Child.inherit()
    launch = child.launch(GatewayLaunch)
    child.start()
    _live(child, launch)


def _live(child: Child, launch: GatewayLaunch) -> NoReturn:
    context: Context = zmq.Context()

    async def live() -> None:
        await Gateway(child, launch, context).run()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(live())
    except PortError as error:
        child.fail("port", str(error), starting=True)
    except CertificateError as error:
        child.fail("certificate", str(error), starting=True)
    except Exception:  # noqa: BLE001 (a bug of ours: the daemon gets its traceback, and the process ends)
        child.fail("gateway", traceback.format_exc(), starting=False)
    child.end(0)


if __name__ == "__main__":
    main()
