"""Which columns of a data set travel with its clips: the caption, and others by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .media_index import columns_text


CAPTION = "caption"


@dataclass(frozen=True)
class Columns:
    r"""A choice of columns.

    Attributes:
        carried: Columns that go with every clip.
        caption: The column of captions. `"caption"` may be missing, another one may not.
    """

    carried: tuple[str, ...] = ()
    caption: str = CAPTION

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return *self.carried, self.caption

    def pick(self, where: str, fields: Mapping[str, Any]) -> tuple[str, str]:
        """Caption of a clip, and its other columns as JSON.

        Raises:
            ValueError: A column is missing.
        """
        self.check(where, fields)
        return str(fields.get(self.caption) or ""), self.pick_carried(where, fields)

    def pick_carried(self, where: str, fields: Mapping[str, Any]) -> str:
        """The carried columns of a clip as JSON.

        Raises:
            ValueError: A column is missing.
        """
        _check(where, self.carried, fields)
        return columns_text({name: fields[name] for name in self.carried})

    def check(self, where: str, fields: Mapping[str, Any]) -> None:
        """Refuses a clip, or a whole data set, without one of the columns."""
        _check(where, self.carried if self.caption == CAPTION else self.names, fields)


def _check(where: str, names: tuple[str, ...], fields: Mapping[str, Any]) -> None:
    missing = [name for name in names if name not in fields]
    if missing:
        raise ValueError(f"{where}: has no column `{missing[0]}`, only {', '.join(map(str, fields)) or 'none'}.")
