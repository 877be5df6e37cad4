"""The commands' common frame: arguments, errors, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import (
    comparison,
    compression,
    console,
    conversion,
    demo,
    demo_clip,
    evaluation,
    export,
    generation,
    inspection,
    reconstruction,
    training,
    web_page,
)
from .sources import Commands


# The base class of wrong usage, which typer takes from click or brings along, depending on its version.
UsageError: Any = typer.BadParameter.__bases__[0]

# What shells expect after Ctrl-C; newer versions of typer return it themselves.
INTERRUPTED = 130

app = Commands(
    name="vidvae",
    help="Video autoencoders: compress, reconstruct and generate video; convert, train and publish models.",
    epilog="Exit code 0 means success. `--debug`, anywhere, shows tracebacks and all warnings.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _print_version(value: bool) -> None:
    if value:
        from diffusers_vidvae import __version__

        print(f"diffusers-vidvae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


for module in (
    compression,
    comparison,
    reconstruction,
    evaluation,
    generation,
    inspection,
    conversion,
    export,
    training,
    web_page,
    demo_clip,
    demo,
):
    module.add_commands(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `vidvae` and exits: 0 on success, 1 on an error, 2 on wrong usage, 130 when interrupted or terminated."""
    # Job schedulers, containers and `timeout` ask to end by SIGTERM; it unwinds like Ctrl-C and leaves nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Runs a command and returns its exit code."""
    arguments, debug = _take_debug(arguments)
    try:
        with console.warnings_as_lines(debug):
            result = typer.main.get_command(app).main(arguments, prog_name="vidvae", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except UsageError as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        console.print_error(_describe(error))
        return 1
    if code == INTERRUPTED:
        console.print_error("interrupted")
    return code


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Takes `--debug` out of the arguments, whichever command it stands behind."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = [argument for argument in arguments[:end] if argument != "--debug"]
    return options + arguments[end:], len(options) < end


def _describe(error: Exception) -> str:
    """One line for an error; errors that nobody foresaw say what they are."""
    from diffusers_vidvae.conversion import CheckpointError
    from diffusers_vidvae.hub import HubError

    message = str(error).strip()
    if isinstance(error, CheckpointError):
        # Lists the keys that do not fit.
        return message
    first, *more = message.splitlines() or [""]
    if more:
        first += " (--debug shows the rest)"
    if isinstance(error, (ValueError, OSError, HubError)):
        return first or type(error).__name__
    return f"{type(error).__name__}: {first} (--debug shows where)"
