"""The composition root: one node, from its start to its end."""

import asyncio
import contextlib
import faulthandler
import logging
import os
import random
import secrets
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from dmi_node import clock, joining
from dmi_node.config import Config, ConfigError, size_of, split
from dmi_node.control.server import ControlServer
from dmi_node.control.verbs import Verbs
from dmi_node.crashes import Crashes
from dmi_node.driver import Driver
from dmi_node.home import Home, private_files
from dmi_node.notify import Notifier
from dmi_node.own_capacity import own_capacity
from dmi_node.storage.blobs import Blobs
from dmi_node.storage.journal import IDENTITY, Journal, JournalError, UnwritableError
from dmi_node.supervision.supervisor import Supervisor
from dmi_node.tasks import Tasks
from dmi_node.transport.fetching import NoSourceError
from dmi_node.transport.library import Library
from dmi_node.transport.mesh import MeshTransport
from dmi_node.transport.refusals import Refusals
from dmi_protocol import effects as do
from dmi_protocol import reasons
from dmi_protocol.address import is_address
from dmi_protocol.cluster.command import Command
from dmi_protocol.cluster.owners import Used, used
from dmi_protocol.consensus.settings import Restored
from dmi_protocol.effects import Answer, Effect, PersistSnapshot
from dmi_protocol.errors import RemoteProtocolError
from dmi_protocol.events import Asked, BlobArrived, BlobFailed, BlobPinned, Event, JoinAsked, Stopping
from dmi_protocol.identity import BlobHash, NodeId, RequestId, node_id
from dmi_protocol.messages.control import Introduced, Join, Refused, Welcomed
from dmi_protocol.peer import Me, Peer, PeerSettings, found
from dmi_protocol.sentences import sentence
from dmi_wire.keys import KeyFileError, KeyPair
from dmi_wire.listener import Heard

_log = logging.getLogger("dmi.node")
_STOP_S = 5.0
CRASHED = 70
DISK_FAILED = 74
"""The journal cannot be used any more, and not because the disk is full: nothing can be promised."""
_RETIRED = "retired"
_DEFAULT_LISTEN = "0.0.0.0:7600"
_ONCE = "to make it a witness, `dmi-node leave`, move its home away and join again with --witness"


class Identity(msgspec.Struct, frozen=True):
    """What a home remembers of its first start."""

    name: str
    listen: str
    advertise: str | None
    witness: bool
    introduced: tuple[Introduced, ...] = ()


class RetiredError(Exception):
    """This home's node is a member no more. The text says why, and what to do."""


class Changes:
    """Wakes everybody who waits for the next change."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.count = 0
        """How often something was new."""

    def happened(self) -> None:
        """Something is new."""
        self.count += 1
        if not self._next.done():
            self._next.set_result(None)
        self._next = asyncio.get_running_loop().create_future()

    async def wait(self, since: int) -> None:
        """Until there was a change after ``count`` was ``since``, or five seconds: what is shown also depends on time."""
        if self.count == since:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._next), 5)


class Node:
    """Start it with ``run``."""

    def __init__(self, home: Home, config: Config) -> None:
        self._home = home
        self._config = config
        self._capacity = own_capacity(config)
        self._tasks = Tasks()
        self._refusals = Refusals()
        self._answers: dict[RequestId, asyncio.Future[Answer]] = {}
        self._ended = asyncio.Event()
        self._retired: reasons.Reason | None = None
        self._crashes = Crashes(home.crashes, version("dmi"))
        self._set_aside = self._crashes.set_aside()
        self.changed = Changes()
        self.blobs = Blobs(home.blobs, None if config.quota is None else size_of(config.quota))
        self.blobs.sweep()

    async def run(self, environment: Mapping[str, str]) -> None:
        """Until somebody asks it to end, or a part of it fails. Raises ``RetiredError`` when it is a member no more."""
        notifier = Notifier(dict(environment))
        _check_files(self._home)
        journal = Journal(self._home.state)
        try:
            if (why := journal.fact(_RETIRED)) is not None:
                raise RetiredError(why.decode())
            await self._live(notifier, journal, environment.get("RUNTIME_DIRECTORY"))
            if self._retired is not None:
                why = sentence(self._retired).encode()
                if isinstance(self._retired, reasons.WasExpelled):  # the other is a conclusion, and may be drawn again
                    with contextlib.suppress(UnwritableError):
                        journal.keep(_RETIRED, why)
                raise RetiredError(why.decode())
        finally:
            notifier.stopping()
            await self._tasks.close()
            journal.close()

    async def _live(self, notifier: Notifier, journal: Journal, beside: str | None) -> None:
        """``beside`` is the folder that systemd has made for a socket: more may reach that than may look into the home."""
        keys = _keys(self._home, is_member=journal.fact(IDENTITY) is not None)
        self._mesh = MeshTransport(keys, self._tasks, self._refusals, self._give, self._take_blob, self._take_join)
        try:
            identity = await self._identity(journal, keys)
            me = self._me(identity, keys, journal.next_boot())
            self.library = Library(me.node, self._home, self.blobs, self._tasks, self._mesh.send, self.pin, self._used)
            self._supervisor = Supervisor(self._home, self.blobs, self._tasks, self._give)
            known = _fact(journal, "members", tuple[Introduced, ...], identity.introduced)
            self._known = {member.node: member for member in known}
            self.peer = self._restored(me, journal, known)
            self._compare(self._config.join)
            self._driver = Driver(self.peer, journal, self._do, self._set_aside)
            for subject, line in self._set_aside.why.items():
                _log.warning("set aside, for it ended this node twice: %s (%s)", subject, line)
            driving = self._tasks.start(self._driver.run(), "driver")
            for (
                blob
            ) in self.blobs.sizes():  # what an earlier life kept: what nothing speaks of by then goes after a while
                self._give(BlobPinned(blob))
            control = ControlServer(Verbs(self).table(), self._tasks)
            await control.listen(self._home.socket)
            if beside is not None:
                await control.listen(Path(beside) / self._home.socket.name)
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.end)
            if notifier.watchdog_s:
                self._tasks.start(_say_alive(notifier), "watchdog")
            notifier.ready()
            notifier.status(f"{me.name} serves on {me.address}")
            _log.info("%s serves on %s", me.name, me.address)
            await self._until_ended()
            control.close()
            await self._stop(notifier)
            driving.cancel()
        finally:
            self._home.socket.unlink(missing_ok=True)
            self._mesh.close()

    def _restored(self, me: Me, journal: Journal, known: tuple[Introduced, ...]) -> Peer:
        chance = random.Random(secrets.randbits(64))
        try:
            return Peer(me, PeerSettings(), chance, journal.restore(), known, self._set_aside)
        except RemoteProtocolError as error:
            raise journal.damaged("state", error) from error

    def _compare(self, token: str | None) -> None:
        """An invitation is of no use to a member, and to one of another mesh no harm that nobody hears of."""
        with contextlib.suppress(joining.JoinError):
            state = self.peer.state
            if (
                token is not None
                and state is not None
                and (asked := joining.Invitation.of_token(token).mesh) != state.mesh
            ):
                _log.warning("this is a member of mesh %s: the invitation to mesh %s is not used", state.mesh, asked)

    async def _until_ended(self) -> None:
        ended = asyncio.ensure_future(self._ended.wait())
        failed = asyncio.ensure_future(self._tasks.watch())
        await asyncio.wait([ended, failed], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if failed.done() and (error := failed.exception()) is not None:
            crash(error, self._crashes)
        failed.cancel()

    async def _stop(self, notifier: Notifier) -> None:
        """In good order: hand over, tell the others, end the children."""
        notifier.stopping()
        self._give(Stopping())
        await self._supervisor.close(_STOP_S)
        await asyncio.sleep(0.05)

    # Who we are

    async def _identity(self, journal: Journal, keys: KeyPair) -> Identity:
        """Listen, and be somebody: the one that this home was, or a newcomer, or the founder of a mesh."""
        identity = _fact(journal, IDENTITY, Identity, None)
        if identity is not None:
            if self._config.witness and not identity.witness:
                _log.warning("%s is a member that plays roles, and stays one: %s", identity.name, _ONCE)
            listen = self._listen(_listens(self._config.listen, identity.listen))
            return msgspec.structs.replace(identity, listen=listen)
        name = self._config.name or socket.gethostname().partition(".")[0]
        listen = self._listen(self._config.listen or _DEFAULT_LISTEN)
        identity = Identity(name, listen, self._config.advertise, self._config.witness)
        address = _advertised(identity, self._config)
        if self._config.join is not None:
            join = Join(name, address, keys.public, self._config.witness)
            welcomed = await joining.redeem(self._config.join, join)
            identity = msgspec.structs.replace(identity, introduced=welcomed.members)
        else:
            me = Me(
                node_id(keys.public),
                name,
                address,
                keys.public,
                witness=self._config.witness,
                capacity=self._capacity,
            )
            founded: Restored = found(me, secrets.token_hex(8))
            assert founded.snapshot is not None
            journal.write([do.PersistVote(founded.term, None), PersistSnapshot(founded.snapshot, keep_log=False)])
        journal.keep(IDENTITY, msgspec.msgpack.encode(identity))
        journal.settle()
        return identity

    def _listen(self, address: str) -> str:
        host, port = split(address, "listen")
        return f"{host}:{self._mesh.listen(host, port)}"

    def _me(self, identity: Identity, keys: KeyPair, boot_count: int) -> Me:
        return Me(
            node=node_id(keys.public),
            name=identity.name,
            address=_advertised(identity, self._config),
            public_key=keys.public,
            pid=os.getpid(),
            version=version("dmi"),
            witness=identity.witness,
            ports=self._config.data_ports,
            capacity=self._capacity,
            boot_count=boot_count,
        )

    # Events

    def _give(self, event: Event) -> None:
        self._driver.give(event)

    def _take_blob(self, sender: NodeId, message: object) -> None:
        self.library.take(sender, message)  # type: ignore[arg-type]

    def _take_join(self, heard: Heard, join: Join) -> None:
        self._tasks.start(self._let_in(heard, join), "join")

    async def _let_in(self, heard: Heard, join: Join) -> None:
        request = RequestId(f"join/{heard.key}/{join.public_key}")
        answer = await self._wait(JoinAsked(request, heard.key, join, clock.unix()))
        if answer.refusal is not None:
            self._refusals.add("invitation", heard.key, sentence(answer.refusal))
            self._mesh.answer(heard, Refused(answer.refusal))
            return
        state = self.peer.state
        assert state is not None
        members = tuple(Introduced(m.node, m.name, m.address, m.public_key) for m in state.members.values())
        self._mesh.answer(heard, Welcomed(state.mesh, members))

    async def ask(self, command: Command, within_ms: int) -> Answer:
        """Have ``command`` agreed; gives the answer, whatever it is."""
        return await self._wait(Asked(command.request, command, within_ms))

    async def _wait(self, event: Asked | JoinAsked) -> Answer:
        waited = self._answers.setdefault(event.request, asyncio.get_running_loop().create_future())
        self._give(event)
        try:
            return await asyncio.shield(waited)
        finally:
            self._answers.pop(event.request, None)

    async def pin(self, blob: BlobHash) -> None:
        """The blob stays here for a while, if it is here: whoever looks afterwards whether it is finds what stays."""
        self._give(BlobPinned(blob))
        await self._driver.done()

    def _used(self, sizes: Mapping[BlobHash, int]) -> Used:
        return used(self.peer.state, sizes) if self.peer.state is not None else Used(unclaimed=sum(sizes.values()))

    def sources(self, holders: Iterable[NodeId]) -> list[NodeId]:
        """Whom a blob is fetched from: first those who are well."""
        others = [node for node in holders if node != self.peer.me.node]
        return sorted(others, key=lambda node: self.peer.standing(node) != "alive")

    def refused(self) -> Mapping[str, int]:
        """What was refused, by reason."""
        return self._refusals.counts

    def set_aside(self) -> Mapping[str, str]:
        """What ended this node before and is left alone, each with the last line of its traceback."""
        return self._set_aside.why

    def end(self) -> None:
        """End in good order."""
        self._ended.set()

    # Effects

    def _do(self, effect: Effect) -> None:
        match effect:
            case do.Send(to, message):
                self._mesh.send(to, message)
            case do.Answer(request):
                waited = self._answers.get(request)
                if waited is not None and not waited.done():
                    waited.set_result(effect)
            case do.Link(node, name, address, public_key):
                self._mesh.link(effect)
                self._know(self._known | {node: Introduced(node, name, address, public_key)})
            case do.Unlink(node):
                self._mesh.unlink(node)
                self._know({n: other for n, other in self._known.items() if n != node})
            case do.Redial(node):
                self._mesh.redial(node)
            case do.Retire(reason):
                self._retired = reason
                self.end()
            case do.AllowInvitations(keys):
                self._mesh.invite(keys)
            case do.Changed():
                self.changed.happened()
            case do.Explain(subject, reason):
                _log.info("%s: %s", subject, sentence(reason))
            case _:
                self._do_for_roles(effect)

    def _know(self, members: dict[NodeId, Introduced]) -> None:
        """Remember whom to ask after a restart, before the log has been agreed on again."""
        if members != self._known:
            self._known = members
            self._tasks.start(self._driver.keep("members", msgspec.msgpack.encode(tuple(members.values()))), "members")

    def _do_for_roles(self, effect: Effect) -> None:
        match effect:
            case do.StartRole():
                self._supervisor.start(effect)
            case do.TellRole():
                self._supervisor.tell(effect)
            case do.StopRole():
                self._supervisor.stop(effect)
            case do.FetchBlob(blob, sources):
                self._tasks.start(self._fetch(blob, sources), f"fetch {blob[:8]}")
            case do.DropBlob(blob):
                self.blobs.drop(blob)
            case do.ForgetJob(job):
                self._supervisor.forget(job)

    async def _fetch(self, blob: BlobHash, sources: tuple[NodeId, ...]) -> None:
        try:
            await self.library.fetch(blob, self.sources(sources))
        except (NoSourceError, OSError) as error:
            self._give(BlobFailed(blob, str(error)))
        except Exception as error:  # noqa: BLE001 (one file that cannot be had is no reason to end)
            _log.error("%s cannot be fetched", blob[:8], exc_info=error)
            self._give(BlobFailed(blob, repr(error)))
        else:
            self._give(BlobArrived(blob))


def crash(error: BaseException, crashes: Crashes | None = None) -> NoReturn:
    """End at once: something is wrong that nobody understands, or the disk fails. The kernel ends our children with us,
    the disk has all that was promised, and the service starts again; ``crashes`` remembers what it was at."""
    if isinstance(error, JournalError):
        print(error, file=sys.stderr, flush=True)
        os._exit(DISK_FAILED)
    traceback.print_exception(error)
    sys.stderr.flush()
    if crashes is not None:
        with contextlib.suppress(OSError):
            crashes.happened(error)
    os._exit(CRASHED)


Found = TypeVar("Found")
Missing = TypeVar("Missing")


def _fact(journal: Journal, name: str, kind: type[Found], missing: Missing) -> Found | Missing:
    """What this node keeps under ``name``. Raises ``JournalError``."""
    stored = journal.fact(name)
    if stored is None:
        return missing
    try:
        return msgspec.msgpack.decode(stored, type=kind)
    except msgspec.DecodeError as error:
        raise journal.damaged(name, error) from error


def _listens(wanted: str | None, before: str) -> str:
    """Where a member listens now; any port is the one that it had."""
    if wanted is None:
        return before
    host, port = split(wanted, "listen")
    return f"{host}:{port or split(before, 'listen')[1]}"


def _check_files(home: Home) -> None:
    """A node makes its state before its key, so a key without a state is what is left of a member: as nothing else tells that it
    was one, it would found a mesh of its own, and be a quorum there. Raises ``JournalError``."""
    if home.key.exists() and not (home.state.exists() and home.state.stat().st_size):
        what = "empty" if home.state.exists() else "not there"
        raise JournalError(
            f"{home.state} is {what}, and {home.key.name} beside it is the key of a node that was started before: "
            f"`dmi-node expel` it elsewhere, move {home.root} away and join again with a new invitation"
        )


def _keys(home: Home, *, is_member: bool) -> KeyPair:
    """The node's key, made at the first start. Raises ``KeyFileError``, ``OSError``."""
    if not home.key.exists():
        if is_member:
            raise KeyFileError(
                f"{home.key} is not there, and {home.state.name} beside it is that of a member, which nobody would know by "
                f"another key: put it back, or `dmi-node expel` it elsewhere, move {home.root} away and join again"
            )
        made = KeyPair.make()
        made.save(home.key)
        home.public_key.write_text(f"{made.public}\n")
    return KeyPair.load(home.key)


def _advertised(identity: Identity, config: Config) -> str:
    """Where the others reach us."""
    advertise = config.advertise or identity.advertise or identity.listen
    host, port = split(advertise, "advertise")
    port = port or split(identity.listen, "listen")[1]
    if host in {"0.0.0.0", "::"}:  # noqa: S104 (refused here, not bound)
        raise ConfigError(
            "listening on every address, so say under which one the others reach this node: --advertise HOST:PORT"
        )
    if not is_address(address := f"{host}:{port}"):
        raise ConfigError(f"advertise must be HOST:PORT as the others can dial it, not {address!r}")
    return address


async def _say_alive(notifier: Notifier) -> None:
    while True:
        notifier.alive()
        await asyncio.sleep(notifier.watchdog_s)


async def serve(root: Path, config: Config, environment: Mapping[str, str]) -> None:
    """One node on the home at ``root``. Raises what its parts raise; see ``__main__`` for what becomes of it."""
    faulthandler.register(signal.SIGUSR1)  # where every thread stands, on standard error
    home = Home(root)
    with private_files():
        home.make()
        home.lock()
        try:
            await Node(home, config).run(environment)
        finally:
            home.unlock()
