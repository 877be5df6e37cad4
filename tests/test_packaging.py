"""The distribution holds every subpackage, and installs no `pipelines` or `conversion` at the top level."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_listed_packages_are_all_there_are():
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_packages(str(ROOT), include=["diffusers_vidvae*"])
    assert sorted(project()["tool"]["setuptools"]["packages"]) == sorted(found)


def test_links_point_to_the_folders_at_the_top():
    for name in ("pipelines", "conversion"):
        assert (ROOT / "diffusers_vidvae" / name).resolve() == ROOT / name


def test_top_level_names_are_not_installed(tmp_path):
    script = """
from importlib.util import find_spec
assert find_spec("diffusers_vidvae") is not None
assert find_spec("pipelines") is None and find_spec("conversion") is None
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)


def test_command_is_installed():
    scripts = metadata.entry_points(group="console_scripts", name="vidvae")
    assert [script.value for script in scripts] == ["diffusers_vidvae.cli:main"]


def test_pinned_versions_satisfy_the_declared_ranges():
    requirements = pytest.importorskip("packaging.requirements")
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            pins[pin.name.lower()] = str(pin.specifier).removeprefix("==")
    settings = project()["project"]
    extras = settings["optional-dependencies"]
    for line in [*settings["dependencies"], *extras["test"], *extras["train"], *extras["eval"], *extras["jax"]]:
        declared = requirements.Requirement(line)
        assert declared.specifier.contains(pins[declared.name.lower()]), line


def imports_of(file: Path) -> set[str]:
    """Top-level names of all modules a file imports, and relative imports as they stand."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("folder", ["models", "schedulers"])
def test_model_and_scheduler_files_can_travel_alone(folder):
    files = list((ROOT / "diffusers_vidvae" / folder).glob("*.py"))
    # Their sibling modules travel inside them.
    allowed = {"torch", "diffusers", *(f".{file.stem}" for file in files), *sys.stdlib_module_names}
    for file in files:
        assert imports_of(file) <= allowed, file.name


def test_no_file_holds_a_machine_path():
    needles = ["/" + "work/", "/" + "root/", "/" + "home/"]
    for file in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        path = ROOT / file
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ".txt") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not any(needle in text for needle in needles), file


@pytest.mark.slow
def test_wheel_of_the_source_distribution_holds_all_files_and_nothing_else(tmp_path):
    """Also where the links inside the package were not checked out, as on Windows."""
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
    for name in ("pipelines", "conversion"):
        (checkout / "diffusers_vidvae" / name).unlink()
        (checkout / "diffusers_vidvae" / name).write_text(f"../{name}")
    with tarfile.open(build("build_sdist", checkout, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheel = build("build_wheel", unpacked, tmp_path)

    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"diffusers_vidvae", wheel.name.split("-py3")[0] + ".dist-info"}
    kinds = {".py", ".typed", ".json", ".yaml", ".md", ".safetensors", ".jpg", ".png", ".html", ".css", ".js"}
    for folder in ("diffusers_vidvae", "pipelines", "conversion"):
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and file.suffix in kinds:
                assert (
                    f"diffusers_vidvae/{file.relative_to(ROOT).as_posix().removeprefix('diffusers_vidvae/')}" in names
                )


def build(step: str, folder: Path, output: Path) -> Path:
    """Runs a step of the build backend in a folder, without an environment of its own."""
    script = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    arguments = [sys.executable, "-c", script, step, str(output)]
    result = subprocess.run(arguments, cwd=folder, check=True, capture_output=True, text=True)
    return output / result.stdout.split()[-1]
