r"""Publishing on the Hub: model cards, uploads, and repositories that work without this package.

- `push_folder(folder, repo_id)` publishes a saved pipeline, model or scheduler with a model card.
- `export_standalone(saveable, folder)` saves weights together with the source files that run them, for plain diffusers
  with `trust_remote_code=True`.
- `build_model_card(folder, repo_id)` writes the card alone.

Pipelines, models and schedulers of this package publish themselves with `push_to_hub`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .cards import build_model_card as build_model_card
    from .loading import UnsupportedFormatError as UnsupportedFormatError
    from .push import HubError as HubError
    from .push import push_folder as push_folder
    from .standalone import export_standalone as export_standalone

_EXPORTS = {
    "HubError": "push",
    "UnsupportedFormatError": "loading",
    "build_model_card": "cards",
    "export_standalone": "standalone",
    "push_folder": "push",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
