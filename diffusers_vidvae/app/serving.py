r"""The page on an address, until it is interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from .page import PageModels
from .settings import Address, Limits


@contextmanager
def open_page(models: PageModels, limits: Limits, address: Address) -> Iterator[str]:
    r"""Serves the page inside the block.

    All files of its visitors lie in one folder, which goes with the block; those of each go when the page is closed.

    Args:
        models: What it runs.
        limits: What visitors may ask for.
        address: Where it is served.

    Yields:
        The address to open; the public one, if it is shared.

    Raises:
        OSError: The port is taken.
    """
    with TemporaryDirectory(prefix="vidvae-app-") as name, _variable("GRADIO_TEMP_DIR", name):
        import gradio as gr

        from .interface import CSS, build_page

        blocks = build_page(models, limits, Path(name))
        try:
            _, local, shared = blocks.launch(
                server_name=address.host,
                server_port=address.port,
                share=address.share,
                # What is a little too large gets as far as a message with both numbers.
                max_file_size=2 * limits.max_bytes,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                run_history=False,
                footer_links=["api"],
                theme=gr.themes.Default(primary_hue="orange"),
                css=CSS,
            )
            yield shared or local
        finally:
            blocks.close(verbose=False)


def serve(models: PageModels, limits: Limits, address: Address, on_ready: Callable[[str], None]) -> None:
    r"""Serves the page until Ctrl-C; see `open_page`.

    Args:
        models: What it runs.
        limits: What visitors may ask for.
        address: Where it is served.
        on_ready: Called with the address to open.
    """
    try:
        with open_page(models, limits, address) as url:
            on_ready(url)
            Event().wait()
    except KeyboardInterrupt:
        return


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
