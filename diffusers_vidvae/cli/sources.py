"""Which revision and variant of a model is loaded, and whether code that comes with it may run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import wraps
from typing import Annotated, Any

import typer

from .examples import EXAMPLES


@dataclass(frozen=True)
class Source:
    """What the options of `--model` ask for."""

    revision: str | None = None
    variant: str | None = None
    trust_remote_code: bool = False

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, as keywords of `from_pretrained`."""
        return {item.name: value for item in fields(self) if (value := getattr(self, item.name)) != item.default}


OPTIONS = {
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of a --model on the Hub.")],
    "variant": Annotated[str | None, typer.Option(help="Variant of the --model's weights, such as `fp16`.")],
    "trust_remote_code": Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that comes with the --model, if it is of no class that diffusers or this package has.",
        ),
    ],
}

DEFAULT = Source()

# Set while a command runs that has a --model.
current: ContextVar[Source] = ContextVar("current", default=DEFAULT)


class Commands(typer.Typer):
    """A command line whose commands show an example, and that say which `--model` by options that are everywhere."""

    def command(  # type: ignore[override]
        self, name: str | None = None, **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            example = EXAMPLES[name or function.__name__]
            add = super(Commands, self).command(name, epilog=f"Example: `{example}`", **options)
            return add(_with_source(function) if _has_model(function) else function)

        return register


def _has_model(command: Callable[..., Any]) -> bool:
    parameter = inspect.signature(command).parameters.get("model")
    return parameter is not None and parameter.annotation in ("Model", "ModelArgument", "Models")


def _with_source(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with the options of its model's source, which count while it runs."""

    @wraps(command)
    def run(**arguments: Any) -> Any:
        token = current.set(Source(**{name: arguments.pop(name) for name in OPTIONS}))
        try:
            return command(**arguments)
        finally:
            current.reset(token)

    added = [
        inspect.Parameter(
            item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=OPTIONS[item.name]
        )
        for item in fields(Source)
    ]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters += added if parameter.name == "model" else []
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
