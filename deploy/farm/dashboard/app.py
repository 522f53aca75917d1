"""
The web application: pages made here, and a stream of what changes.

==================  ==============================================================
``/``               boards, queue, what runs with its latency and power, plans, the latest runs
``/runs``           all runs, page by page
``/runs/ID``        a run with its plots: the page of `deploy report`
``/plans/NAME``     the matrix of a plan: likewise
``/now``            what ``/`` shows, as JSON, see `View.now`
``/events``         the same again and again, as server-sent events
==================  ==============================================================

Nothing is loaded from anywhere else.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from deploy.errors import StoreError
from deploy.farm.dashboard.guard import Guard
from deploy.farm.dashboard.view import View
from deploy.results import matrix, report
from deploy.results.store import Run
from deploy.units import duration

EVERY_S = 1.0  # between two pictures of what runs
LATEST = 20  # runs on the first page
PAGE = 200  # runs on a page of all
HELD = 32  # pages of runs that are kept once they were drawn

Summary = Callable[[Run], Sequence[tuple[str, str]]]


class Dashboard:
    """
    Args:
        summary: what stands at the top of a run's page.
    """

    def __init__(self, view: View, summary: Summary) -> None:
        self._view = view
        self._summary = summary
        loader = jinja2.FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent])
        self._pages = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
        self._pages.filters["duration"] = duration
        self._drawing = threading.Lock()  # matplotlib's settings are the process's
        self._drawn = lru_cache(HELD)(self._draw)

    def app(self, token: str | None) -> Starlette:
        """The application; `token` as for `deploy.farm.dashboard.guard.Guard`."""
        routes = [
            Route("/", self.first),
            Route("/app.js", self.script),
            Route("/favicon.ico", lambda request: Response(status_code=204)),  # browsers ask for it unasked
            Route("/now", self.now),
            Route("/events", self.events),
            Route("/runs", self.runs),
            Route("/runs/{run}", self.run),
            Route("/plans/{plan}", self.plan),
        ]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, token=token)],
            exception_handlers={StoreError: _not_found, 404: _no_page},
        )

    async def first(self, request: Request) -> Response:
        now, runs = await run_in_threadpool(lambda: (self._view.now(), self._view.store.runs(LATEST)))
        return self._html("first.html.j2", now=now, runs=runs, title="farm")

    async def script(self, request: Request) -> Response:
        text = self._pages.get_template("app.js.j2").render()
        return Response(text, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    async def now(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._view.now))

    async def events(self, request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._stream(request), media_type="text/event-stream", headers=headers)

    async def _stream(self, request: Request) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        while not await request.is_disconnected():
            picture = await run_in_threadpool(self._view.now)
            yield f"data: {json.dumps(picture)}\n\n"
            await asyncio.sleep(EVERY_S)

    async def runs(self, request: Request) -> Response:
        try:
            page = max(0, int(request.query_params.get("page", "0")))
        except ValueError:
            page = 0
        runs = await run_in_threadpool(self._view.store.runs, PAGE * (page + 1) + 1)
        shown, more = runs[PAGE * page : PAGE * (page + 1)], len(runs) > PAGE * (page + 1)
        return self._html("runs.html.j2", runs=shown, page=page, more=more, title="runs")

    async def run(self, request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(self._drawn, request.path_params["run"]))

    async def plan(self, request: Request) -> Response:
        def draw(name: str) -> str:
            with self._drawing:
                return matrix.render(self._view.store, name, self._view.cells(name))

        name = request.path_params["plan"]
        if "/" in name or name.startswith("."):
            return _no_page(request, Exception())
        return HTMLResponse(await run_in_threadpool(draw, name))

    def _draw(self, run: str) -> str:
        stored = self._view.store.get(run)
        with self._drawing:
            return report.render(stored, self._summary(stored), [])

    def _html(self, name: str, **values: Any) -> Response:
        return HTMLResponse(self._pages.get_template(name).render(**values))


def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", 404)


def _no_page(request: Request, error: Exception) -> Response:
    return PlainTextResponse("there is no such page\n", 404)
