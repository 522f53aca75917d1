"""`deploy sign`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "sign",
    help="""
    Sign BUNDLE, in place or as --out.  A signature that it has is replaced; digest and content stay as they are.
    """
    + common.example("deploy sign net.bundle --key release.key"),
)
@common.bundle_argument
@click.option("--key", required=True, metavar="KEY", type=click.Path(path_type=Path), help="Of `deploy keygen`.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write [BUNDLE].")
@common.json_option
def command(bundle_path: Path, key: Path, out: Path | None, as_json: bool) -> None:
    from deploy import signing

    bundle, fingerprint = signing.sign(signing.load(bundle_path), key)
    bundle.write(out or bundle_path)
    if as_json:
        common.show_json({"path": str(out or bundle_path), "digest": bundle.digest, "key": fingerprint})
    else:
        common.show(f"{out or bundle_path}: signed by {fingerprint}")
