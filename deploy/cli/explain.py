"""`deploy explain`"""

from __future__ import annotations

import click

from deploy.cli import common


@click.command(
    "explain",
    help="""
    Say what the verdict CODE of a run means and what to do about it; without CODE, all of them.
    """
    + common.example("deploy explain throttled"),
)
@click.argument("code", required=False)
@common.json_option
def command(code: str | None, as_json: bool) -> None:
    from deploy.errors import UsageError, nearest
    from deploy.results.verdicts import CODES

    if code is not None and code not in CODES:
        raise UsageError(
            f"no verdict {code!r}{nearest(code, [known for known in CODES if code in known] or CODES)}",
            "`deploy explain` lists all",
        )
    chosen = list(CODES.values()) if code is None else [CODES[code]]
    if as_json:
        common.show_json(chosen)
        return
    for entry in chosen:
        void = "  `deploy gate` does not decide on such a run." if entry.void else ""
        void = "  `deploy gate` does not decide on such energy." if entry.void_energy else void
        common.show(f"{entry.code}\n  {entry.meaning}\n  {entry.remedy}{void}")
