r"""Publishing: model cards, uploads, and repositories that work without this package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING


_EXPORTS = {
    "FORMAT_VERSION": "loading",
    "UnsupportedFormatError": "loading",
    "VidVAEPipelineMixin": "loading",
    "check_format": "loading",
    "create_model_card": "cards",
    "PushError": "push",
    "push_to_hub": "push",
    "export_standalone": "standalone",
}

if TYPE_CHECKING:
    from .cards import create_model_card as create_model_card
    from .loading import FORMAT_VERSION as FORMAT_VERSION
    from .loading import UnsupportedFormatError as UnsupportedFormatError
    from .loading import VidVAEPipelineMixin as VidVAEPipelineMixin
    from .loading import check_format as check_format
    from .push import PushError as PushError
    from .push import push_to_hub as push_to_hub
    from .standalone import export_standalone as export_standalone

__all__ = sorted(_EXPORTS)


# Pipelines import `loading` while the other modules here import pipelines, hence the late imports.
def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
