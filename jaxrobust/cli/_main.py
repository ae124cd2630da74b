"""Parse, run, and turn a user's mistake into one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxrobust.cli._certify import Certify
from jaxrobust.cli._demo import Demo
from jaxrobust.cli._evaluate import Evaluate
from jaxrobust.cli._report import Render
from jaxrobust.cli._train import Train

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Render, tyro.conf.subcommand("report")]
)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments; those of the process where None.

    Returns:
        The exit code: 0 done, 1 the numbers broke down (NaN), 2 a mistake of the user's.
    """
    command: Command = tyro.cli(  # pyright: ignore[reportCallIssue, reportAssignmentType]
        Command,  # pyright: ignore[reportArgumentType]
        prog="jaxrobust",
        description="Attack, train, certify: how robust is an image classifier?",
        args=args,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )
    try:
        command.run()
    except (ValueError, OSError) as error:
        return _complain(error, 2)
    except FloatingPointError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        print(
            "jaxrobust: stopped; the same command goes on from here (train: with --resume)",
            file=sys.stderr,
        )
        return 130
    return 0


def _complain(error: Exception, code: int) -> int:
    print(f"jaxrobust: {' '.join(str(error).split())}", file=sys.stderr)
    return code
