"""Commands that make certificates for a cluster without an authority of its own."""

from __future__ import annotations

import os

import click

node_names = click.option(
    "--node", "names", metavar="NAME", required=True, multiple=True, help="A node's name; may be given again."
)


@click.group(short_help="Make certificates for nodes.")
def tls() -> None:
    """Makes the certificates by which nodes know each other.

    \b
    Example:
      fuse-tier tls init tls --node a --node b --node coordinator
    """


@tls.command(short_help="Make an authority and certificates.")
@click.argument("directory", metavar="DIR", type=click.Path())
@node_names
def init(directory: str, names: tuple[str, ...]) -> None:
    """Makes an authority (ca.pem, ca.key) in DIR and a certificate for each node, NAME.pem and NAME.key.

    Keep ca.key away from the nodes: who has it can be any of them.

    \b
    Example:
      fuse-tier tls init tls --node a --node b
    """
    from fuse_tier.wire.certificates import make_authority

    _check(names)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    make_authority(directory)
    _issue(directory, names)


@tls.command(short_help="Make certificates of further nodes.")
@click.argument("directory", metavar="DIR", type=click.Path())
@node_names
def issue(directory: str, names: tuple[str, ...]) -> None:
    """Makes or renews nodes' certificates with the authority that is in DIR.

    \b
    Example:
      fuse-tier tls issue tls --node c
    """
    _check(names)
    _issue(directory, names)


def _check(names: tuple[str, ...]) -> None:
    """Before anything is made: a name that is refused leaves all as it was."""
    from fuse_tier.wire.certificates import check_name

    for name in names:
        check_name(name)


def _issue(directory: str, names: tuple[str, ...]) -> None:
    from fuse_tier.wire.certificates import make_certificate

    for name in names:
        files = make_certificate(directory, name)
        click.echo(f"{name}: {files.cert}, {files.key}")
