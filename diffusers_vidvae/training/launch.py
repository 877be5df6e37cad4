"""Command line of the training scripts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


CONFIGS = Path(__file__).parent / "configs"


def config_path(path: str | Path) -> Path:
    """A configuration file; a bare name may also be one of those in the package."""
    path = Path(path)
    packaged = CONFIGS / path.name
    return packaged if not path.exists() and path.parent == Path(".") and packaged.is_file() else path


def run_from_command_line(
    main: Callable[[str | Path, Sequence[str]], Path], description: str | None, arguments: Sequence[str] | None = None
) -> None:
    """Parses `--config FILE [section.key=value ...]`, trains and prints where the model is; exits on bad input."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    packaged = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
    parser.add_argument("--config", required=True, help=f"YAML file, or one of the package's: {packaged}")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replaces a value of the file")
    options = parser.parse_args(arguments)
    try:
        folder = main(options.config, options.overrides)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"Model saved in {folder}")
