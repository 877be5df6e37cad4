"""What importing the package does, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(script: str, tmp_path: Path) -> str:
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert not result.returncode, result.stderr[-3000:]
    return result.stdout


HEAVY = ["av", "diffusers", "huggingface_hub", "imageio", "numpy", "rich", "torch", "transformers", "typer"]


def test_import_loads_no_library(tmp_path):
    script = f"""
import sys
before = set(sys.modules)
import diffusers_vidvae
added = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(added & set({HEAVY!r})))
print(sorted({{"GapDiT", "DiffusionPipeline", "demo_model"}} - set(dir(diffusers_vidvae))))
"""
    assert run(script, tmp_path).split() == ["[]", "[]"]


def test_commands_load_what_they_need(tmp_path, shared_media):
    clip = shared_media / "clips" / "keyboard_rot0.mov"
    script = f"""
import sys
from diffusers_vidvae import demo_model
from diffusers_vidvae.cli.app import run
for arguments in (["--help"], ["compress", "--help"], ["info", {str(clip)!r}], ["info", demo_model()]):
    assert run(arguments) == 0
print("loaded:", [name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    assert run(script, tmp_path).splitlines()[-1] == "loaded: []"


IMPORTS = {
    "the package first": "import diffusers_vidvae.hub, diffusers",
    "diffusers' loaders first": "from diffusers import DiffusionPipeline; import diffusers_vidvae, diffusers",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=list(IMPORTS))
def test_diffusers_knows_the_classes_whichever_comes_first(tmp_path, imports):
    script = f"""
{imports}
from diffusers_vidvae import demo_model
from diffusers_vidvae._registration import CLASSES, register
register()
loaded = diffusers.DiffusionPipeline.from_pretrained(demo_model())
assert type(loaded) is diffusers.GapDiTPipeline is diffusers_vidvae.GapDiTPipeline
assert type(loaded.vae) is diffusers.AutoModel.from_pretrained(demo_model(), subfolder="vae").__class__
for name in CLASSES:
    found = getattr(diffusers, name)
    assert found is getattr(diffusers_vidvae, name) and found.push_to_hub.__module__ == "diffusers_vidvae.hub.push"
for name in diffusers_vidvae.__all__:
    getattr(diffusers_vidvae, name)
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
assert "GapDiT" in SINGLE_FILE_LOADABLE_CLASSES
assert diffusers.FluxPipeline.__module__.startswith("diffusers.")
assert type(diffusers.__spec__.loader).__module__ == "_frozen_importlib_external"
print("done")
"""
    assert "done" in run(script, tmp_path)


def test_signatures_are_real(tmp_path):
    script = """
import inspect
import diffusers_vidvae
assert "sample" in inspect.signature(diffusers_vidvae.FrameSelectVAE.encode).parameters
assert "keep_mask" in inspect.signature(diffusers_vidvae.FrameSelectVAE.decode).parameters
# What diffusers calls so, with options of its own.
of_diffusers = {"from_single_file", "load_lora_weights", "lora_state_dict", "fuse_lora", "unfuse_lora", "save_config"}
# Steps of a call, which only the call takes.
steps = {"prepare_conditions", "predict"}
for name in diffusers_vidvae.__all__:
    thing = getattr(diffusers_vidvae, name)
    if not inspect.isclass(thing) or not thing.__module__.startswith("diffusers_vidvae"):
        continue
    for method, function in vars(thing).items():
        if not inspect.isfunction(function) or (method.startswith("_") and method != "__call__"):
            continue
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds or method in of_diffusers | steps, (name, method)
print("done")
"""
    assert "done" in run(script, tmp_path)
