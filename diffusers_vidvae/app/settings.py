r"""What the page may be asked for, and where it is served."""

from __future__ import annotations

from dataclasses import dataclass


SIDES = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Limits:
    r"""How much work one visitor may ask for.

    Args:
        max_megabytes: Size of an upload, in 1e6 bytes.
        max_frames: Length of an uploaded or generated clip.
        max_side: Largest shorter side that clips are scaled to, in pixels.

    Raises:
        ValueError: A number is not positive.
    """

    max_megabytes: float = 50.0
    max_frames: int = 300
    max_side: int = 256

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"`{name}` must be positive, got {value}.")

    @property
    def max_bytes(self) -> int:
        return round(self.max_megabytes * 1e6)

    @property
    def sides(self) -> list[int]:
        """Shorter sides to choose from."""
        return [side for side in SIDES if side < self.max_side] + [self.max_side]


@dataclass(frozen=True)
class Address:
    r"""Where the page is served.

    Args:
        host: Address to listen at; the default is for this machine alone, `0.0.0.0` is for everybody who reaches it.
        port: Port; None takes the first free one from 7860 on, or `GRADIO_SERVER_PORT`.
        share: Whether Gradio's servers pass a public address on to the page for three days.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    share: bool = False
