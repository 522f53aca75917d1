"""`deploy report`"""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli import common


@click.command(
    "report",
    help="""
    Write an HTML report of RUN (an id, its beginning, or `last`): one file, nothing loaded from anywhere.

    The latest accuracy, profile and verification of the same bundle on the same board go into it, and how it stands
    among the other runs on that board.  Of a plan (a file that ends in .yaml) it is the matrix of all cells, and which
    of them no other one beats.
    """
    + common.example("deploy report last -o report.html", "deploy report plan.yaml"),
)
@click.argument("run", default="last")
@click.option("-o", "--out", default="report.html", show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def command(boards_file: str | None, run: str, out: Path) -> None:
    from deploy.cli.runs import summary
    from deploy.errors import StoreError
    from deploy.results import report

    store = common.store_of(common.registry(boards_file))
    if run.endswith((".yaml", ".yml")):
        from deploy.results import matrix

        subject = f"plan {Path(run).stem}"
        html = matrix.render(store, Path(run).stem)
    else:
        chosen = store.get(run)
        subject = chosen.id
        companions = report.companions(store, chosen)
        html = report.render(chosen, summary(chosen), [(c, summary(c)) for c in companions], store)
    try:
        out.write_text(html, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{out}: {error.strerror}") from None
    common.show(f"{out}: {common.size(out.stat().st_size)}, of {subject}")
