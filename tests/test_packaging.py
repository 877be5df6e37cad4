"""The distribution holds every subpackage, and installs no `pipelines` or `conversion` at the top level."""

from __future__ import annotations

import ast
import subprocess
import sys
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
    for line in [*settings["dependencies"], *extras["test"], *extras["train"], *extras["eval"]]:
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
    allowed = {"torch", "diffusers", ".factored_attention", *sys.stdlib_module_names}
    for file in (ROOT / "diffusers_vidvae" / folder).glob("*.py"):
        assert imports_of(file) <= allowed, file.name


def test_no_file_holds_a_machine_path():
    needles = ["/" + "work/", "/" + "root/", "/" + "home/"]
    for file in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split():
        path = ROOT / file
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".json", ".txt") and path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not any(needle in text for needle in needles), file


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} <= {"diffusers_vidvae", wheel.name.split("-py3")[0] + ".dist-info"}
    for wanted in (
        "py.typed",
        "pipelines/pipeline_gap_dit.py",
        "conversion/convert_gap_dit.py",
        "models/gap_dit.py",
        "cli/__init__.py",
    ):
        assert f"diffusers_vidvae/{wanted}" in names
    configs = [name for name in names if name.startswith("diffusers_vidvae/training/configs/")]
    assert any(name.endswith(".yaml") for name in configs)
