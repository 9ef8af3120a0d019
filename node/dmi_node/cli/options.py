"""What every verb has in common: ``--home``, ``--json``, and how errors end."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

import dmi.mesh
from dmi.errors import DmiError, NoNodeError, UsageError
from dmi_node.cli.output import NO_NODE, UNHEALTHY, USAGE, end
from dmi_node.config import ConfigError, size_of

Verb = TypeVar("Verb", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    """A number of bytes, written as 50GB or 800MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """In bytes."""
        try:
            return size_of(value, "a number of bytes") if isinstance(value, str) else int(value)
        except ConfigError as error:
            self.fail(str(error), param, ctx)


SIZE = Size()


def share_options(whose: str) -> Callable[[Verb], Verb]:
    """``--cpus`` and ``--memory``; ``whose`` they are, for people."""

    def add(verb: Verb) -> Verb:
        cpus = click.option(
            "--cpus",
            type=click.IntRange(min=1),
            metavar="N",
            help=f"Processors for {whose}: placed where so many are left, and held to them.",
        )
        memory = click.option("--memory", type=SIZE, metavar="SIZE", help=f"Memory for {whose}, in the same way: 2GB.")
        return cpus(memory(verb))

    return add


def home_option(verb: Verb) -> Verb:
    """``--home`` after the verb; before it, it belongs to the group."""
    return click.option(
        "--home", metavar="DIR", expose_value=False, callback=_remember, help="The node's home (or DMI_HOME)."
    )(verb)


def _remember(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.find_root().obj = value


def home() -> str | None:
    """The home that was named on the command line."""
    found: str | None = click.get_current_context().find_root().obj
    return found


def json_option(verb: Verb) -> Verb:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON value instead of a table; see docs/json.md.")(
        verb
    )


def asks_mesh(verb: Callable[..., Any]) -> Callable[..., Any]:
    """The verb gets the mesh as its first argument; what goes wrong becomes one line and an exit code."""

    @functools.wraps(verb)
    def asked(*args: Any, **kwargs: Any) -> Any:
        with telling():
            return verb(dmi.mesh.connect(home()), *args, **kwargs)

    return home_option(json_option(asked))


class telling:  # noqa: N801 (a context manager, read as a word)
    """Turns the errors of the SDK into one line and an exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, NoNodeError):
            end(str(error), NO_NODE)
        if isinstance(error, UsageError):
            end(str(error), USAGE)
        if isinstance(error, DmiError):
            end(str(error), UNHEALTHY)
