"""`deploy keygen`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "keygen",
    help="""
    Make an Ed25519 key pair: the private key in KEY, which only you may read, and the public one in KEY.pub.

    `public_key: KEY.pub` in boards.yaml makes a board run nothing but what KEY has signed.
    """
    + common.example("deploy keygen -o release.key", "deploy build net.tflite --sign release.key -o net.bundle"),
)
@click.option("-o", "--out", required=True, metavar="KEY", type=click.Path(path_type=Path), help="File to write.")
@common.json_option
def command(out: Path, as_json: bool) -> None:
    from deploy.signing import generate

    public, fingerprint = generate(out)
    if as_json:
        common.show_json({"private": str(out), "public": str(public), "fingerprint": fingerprint})
    else:
        common.show(f"{out}: private key, keep it\n{public}: public key {fingerprint}")
