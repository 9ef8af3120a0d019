"""``dmi-node``: the verbs, loaded when they are typed."""

import difflib
import importlib
import io
import sys
from typing import Any

import click

_VERBS = {
    "run": "node",
    "up": "local",
    "down": "local",
    "status": "mesh",
    "members": "mesh",
    "roles": "mesh",
    "invite": "mesh",
    "join": "node",
    "leave": "mesh",
    "drain": "mesh",
    "expel": "mesh",
    "version": "mesh",
    "submit": "jobs",
    "jobs": "jobs",
    "logs": "jobs",
    "why": "jobs",
    "cancel": "jobs",
    "export": "jobs",
    "rm": "jobs",
    "models": "models",
    "df": "models",
    "infer": "infer",
    "serve": "serve",
    "unserve": "serve",
    "token": "token",
}
_SUMMARIES = {
    "run": "Run one node, in the foreground.",
    "up": "Start a whole mesh on this machine.",
    "down": "End a mesh that `up` started.",
    "status": "The mesh, its members and its jobs.",
    "members": "The nodes of the mesh.",
    "roles": "The role processes of all jobs.",
    "invite": "Make a token that lets one new node join.",
    "join": "Let this host join a mesh.",
    "leave": "This node leaves the mesh, for good.",
    "drain": "Move everything off a node.",
    "expel": "Take a node's membership away.",
    "version": "The versions of the command and of the node.",
    "submit": "Train a script on the mesh.",
    "jobs": "The jobs of the mesh.",
    "logs": "What a job has printed.",
    "why": "Why a job is in its state.",
    "cancel": "End a job.",
    "export": "Write a trained model to a file.",
    "rm": "Forget a job that has ended, and free its space.",
    "infer": "Compute many inputs with a model.",
    "serve": "Answer requests with a model.",
    "unserve": "End that.",
    "token": "Who may ask gateways: add, rm.",
    "df": "What lies on the nodes' disks.",
    "models": "The models that the mesh keeps: add, show, rm.",
}


class _Verbs(click.Group):
    """Loads the module of the verb that was typed, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every verb, in the order of the design."""
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command."""
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"dmi_node.cli.{_VERBS[cmd_name]}")
        found: click.Command = getattr(module, cmd_name)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """A typo gets the nearest verb."""
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], _VERBS, 1)
            hint = f"did you mean {near[0]!r}?" if near else "`dmi-node --help` lists the verbs"
            raise click.UsageError(f"there is no verb {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, without loading any."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, _SUMMARIES[verb]) for verb in _VERBS])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--home", metavar="DIR", help="The local node to talk to (or DMI_HOME).")
@click.pass_context
def cli(context: click.Context, home: str | None) -> None:
    """DMI turns the hosts you already own into one machine for PyTorch.

    \b
    dmi-node up --nodes 3 --detach
    dmi-node submit train.py --wait
    """
    context.obj = home


def main() -> None:
    """The entry point. A terminal that cannot show a character gets a stand-in for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    cli(prog_name="dmi-node")
