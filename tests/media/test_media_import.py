from __future__ import annotations

import subprocess
import sys

import pytest

import diffusers_vidvae.media as media


@pytest.mark.slow
def test_package_does_not_import_pyav():
    code = "import sys, diffusers_vidvae; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_public_names_have_docstrings():
    missing = [name for name in media.__all__ if not getattr(getattr(media, name), "__doc__", None)]
    assert missing == []
