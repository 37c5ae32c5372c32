"""The `bench` command. Every command imports what it needs when it is called: `bench --help` imports no torch."""

from __future__ import annotations

import os
from typing import Any

import click

from .. import __version__
from .looking import compare, list_, report
from .options import one_line_errors, plugin_option
from .rechecking import attack, certify, verify
from .running import run
from .tooling import check, doctor, kernels, new_method, time

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
EPILOG = "First steps: bench run (trains and certifies a net on digits in minutes), bench list methods, bench doctor."


class _Group(click.Group):
    """Commands in the order of use, not of the alphabet; a user's mistake is one line, never a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        with one_line_errors():
            return super().invoke(ctx)


@click.group(cls=_Group, context_settings=CONTEXT, epilog=EPILOG)
@click.version_option(__version__, prog_name="certbench")
@plugin_option
def main() -> None:
    """Train, certify, attack, time and compare certifiably robust classifiers."""
    from ..environment import wait_briefly

    wait_briefly(os.environ)


for _command in (run, list_, report, compare, verify, attack, certify, check, new_method, doctor, kernels, time):
    main.add_command(_command)
