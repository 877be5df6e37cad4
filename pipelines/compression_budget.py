r"""What a compressed clip may cost: a quality, or a size or fidelity that frames and step are chosen for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


DEFAULT_QUALITY = 30.0

# Where dropping frames pays on real films with the embedded model: shares of the frames to keep, and the qualities
# between which each is best, from dear to cheap.
RATES_AND_QUALITIES = ((1.0, 100.0, 18.0), (0.5, 20.0, 9.0), (0.25, 15.5, 0.5), (0.125, 4.0, 0.0))

_QUALITY_STEP = 0.25

Coded = TypeVar("Coded")


@dataclass(frozen=True)
class Budget:
    r"""How latents are stored.

    Args:
        quantize: Kind of raw numbers; None for coded latents.
        quality: Quality from 0 to 100 of coded latents.
        target_size: Bytes that the file may have.
        target_bpp: Bits of the file for each pixel of the clip.
        target_psnr: PSNR in dB that the decoded clip shall have.

    Raises:
        ValueError: A number is out of its range, or two arguments contradict each other.
    """

    quantize: str | None = None
    quality: float | None = None
    target_size: int | None = None
    target_bpp: float | None = None
    target_psnr: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise ValueError(f"Give one of {', '.join(vars(self))}, got {' and '.join(given)}.")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise ValueError(f"`quality` must be from 0 to 100, got {self.quality}.")
        for name in ("target_size", "target_bpp", "target_psnr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be positive, got {value}.")

    @property
    def is_target(self) -> bool:
        """Whether frames and step are to be searched for."""
        return not (self.target_size is None and self.target_bpp is None and self.target_psnr is None)


def operating_points(fixed_rate: bool) -> list[tuple[float | None, float]]:
    """Rates and qualities from the best to the cheapest; the rate is None where it is not to be chosen."""
    if fixed_rate:
        return [(None, 100 - _QUALITY_STEP * i) for i in range(int(100 / _QUALITY_STEP) + 1)]
    points: list[tuple[float | None, float]] = []
    for rate, best, worst in RATES_AND_QUALITIES:
        points += [(rate, best - _QUALITY_STEP * i) for i in range(int((best - worst) / _QUALITY_STEP) + 1)]
    return points


def first_that(points: list, code: Callable[[float | None, float], Coded], fits: Callable[[Coded], bool]) -> Coded:
    """The coded clip of the first point that fits, or of the last one, by bisection."""
    low, high, found = 0, len(points) - 1, None
    while low < high:
        middle = (low + high) // 2
        coded = code(*points[middle])
        if fits(coded):
            high, found = middle, (middle, coded)
        else:
            low = middle + 1
    return found[1] if found is not None and found[0] == low else code(*points[low])


def parse_size(text: str) -> int:
    """Bytes of a text such as `200kB`, `1.5 MB` or `4096`; kB and MB are powers of 1000, KiB and MiB of 1024.

    Raises:
        ValueError: The text is none of these.
    """
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ").strip()
    unit = text.strip()[len(number) :].strip().lower()
    try:
        size = float(number) * units[unit]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{text!r} is not a size such as 200kB, 1.5MB or 4096.") from error
    if not 0 < size < 1 << 60:
        raise ValueError(f"{text!r} is not a positive size.")
    return int(size)
