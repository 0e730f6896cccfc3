"""How a command ends: its exit status, and a line on stderr for what went wrong. Never a traceback for bad input."""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

import click

from fuse_tier.errors import FuseTierError

INTERRUPTED = 130  # what shells give for SIGINT


def run_and_exit(commands: click.Command, name: str = "fuse-tier") -> NoReturn:
    """Runs the command that ``sys.argv`` names and ends the process."""
    sys.exit(_run(commands, name))


def _run(commands: click.Command, name: str) -> int:
    try:
        outcome = commands.main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BaseExceptionGroup as group:
        return _of_group(group)
    except FuseTierError as error:
        return report(error)
    except OSError as error:
        return _of_system(error)
    return outcome if isinstance(outcome, int) else 0


def report(error: FuseTierError) -> int:
    """Says what is wrong, a line for each mistake, and gives the exit status."""
    for line in str(error).splitlines() or [type(error).__name__]:
        say_error(line)
    return error.exit_status


def say_error(line: str) -> None:
    """One line on stderr."""
    click.echo(f"fuse-tier: {printable(line)}", err=True)


def printable(line: str) -> str:
    """What a node says may quote a name from elsewhere: nothing of it shall steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)


def _of_system(error: OSError) -> int:
    if error.errno == errno.EPIPE:
        # Who read our output has seen enough. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return report(FuseTierError(f"{place}{error.strerror or error}"))


def _of_group(group: BaseExceptionGroup[BaseException]) -> int:
    """Several tasks may have failed at once; each of ours gets its line, anything else is a defect of ours."""
    _, others = group.split(KeyboardInterrupt)
    if others is None:
        return INTERRUPTED
    known, unknown = others.split(FuseTierError)
    if known is None or unknown is not None:
        raise group
    return max(report(error) for error in _leaves(known))


def _leaves(group: BaseExceptionGroup[FuseTierError]) -> list[FuseTierError]:
    found: list[FuseTierError] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
