"""The server: what it refuses before gradio sees it, and what a browser may fetch."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse

from .limits import Limits, megabytes
from .page import STYLE, Page, theme

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ENVELOPE = 2**16  # bytes around an uploaded file
QUESTION_BYTES = 2**20  # of any other request
SESSIONS = 100  # visitors of whom gradio remembers what it shows: 0.2 MiB each, of 10,000 by itself
# The page comes from this server alone, whatever a component would like to load.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)


class Guard:
    """Bounds the size of requests and the disk space of uploads, and adds the page's policy to answers."""

    def __init__(self, app: Any, limits: Limits, folder: Path):
        self.app, self.limits, self.folder = app, limits, folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        uploads = scope["method"] == "POST" and scope["path"].endswith("/upload")
        most = self.limits.upload_bytes + ENVELOPE if uploads else QUESTION_BYTES
        kind = f"a file may have {megabytes(self.limits.upload_bytes)}" if uploads else "the question is too long"
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await PlainTextResponse(f"This is too large: {kind}.", 413)(scope, receive, send)
            return
        if uploads and _size_of(self.folder) > self.limits.stored_bytes:
            await PlainTextResponse("The server has no room for uploads at the moment.", 507)(scope, receive, send)
            return
        taken, whole = 0, False
        form = headers.get(b"content-type", b"").startswith(b"multipart/form-data")

        async def bounded() -> Message:
            nonlocal taken, whole
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:  # a request without a length
                # gradio removes what it wrote of a form after its reader's own exception alone, and tells by these
                # words that the answer is 413.
                raise (
                    MultiPartException(f"This is too large, beyond the maximum allowed size: {kind}.")
                    if form
                    else HTTPException(413, f"This is too large: {kind}.")
                )
            if form and not whole and message["type"] == "http.disconnect":
                raise MultiPartException("The visitor left.")
            whole = whole or not message.get("more_body", False)
            return message

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, bounded, guarded)


def _size_of(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(place, name))
            except OSError:  # it was just removed
                continue
    return total


def launch(
    page: Page, folder: Path, host: str = "127.0.0.1", port: int | None = None, share: bool = False
) -> gr.Blocks:
    """Serve the page in the background. ``block_thread()`` of the result waits for Ctrl-C, ``close()`` ends the server.

    Args:
        page: the page.
        folder: for uploads, empty. ``GRADIO_TEMP_DIR`` names it as long as the server runs.
        host: the address to listen at; "0.0.0.0" for all of the machine.
        port: by default the first free one from 7860 on.
        share: whether gradio's relay makes the page public.

    Raises:
        OSError: the port is taken.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = str(SESSIONS)  # of the questions that it remembers
    limits = page.answers.limits
    blocks = page.blocks()
    blocks.launch(
        server_name=host,
        server_port=port,
        share=share,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=limits.upload_bytes,
        app_kwargs={"middleware": [Middleware(Guard, limits=limits, folder=folder)]},
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=["api"],
        theme=theme(),
        css=STYLE,
    )
    return blocks
