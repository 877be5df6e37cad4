"""`vidvae push`, and the commands that load what it published, on a local Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


RUN = """
from diffusers_vidvae.cli.app import run
"""


@pytest.mark.slow
def test_pushed_models_run_from_the_command_line(client, hub, tmp_path):
    printed = client(
        RUN
        + """
assert run(["push", "generation", "tester/generation", "--json"]) == 0
assert run(["push", "generation", "tester/generation", "--standalone"]) == 0
assert run(["push", "compression/vae", "tester/vae"]) == 0
"""
    ).stdout
    assert json.loads(printed[: printed.index("}") + 1])["url"].startswith(hub.endpoint)
    assert any(name.endswith(".py") for name in hub.files("tester/generation", "remote-code"))
    assert not any(name.endswith(".py") for name in hub.files("tester/generation"))
    assert "README.md" in hub.files("tester/vae")

    client(
        RUN
        + f"""
options = ["--num-latent-frames", "2", "--num-frames", "3", "--steps", "1"]
assert run(["generate", "-m", "tester/generation", "-o", "{tmp_path}/clip.mkv", *options]) == 0
for model in ("tester/generation", "tester/vae"):
    assert run(["compress", "{tmp_path}/clip.mkv", "-m", model, "-o", "{tmp_path}/clip.fsv", "--force"]) == 0
remote = ["-m", "tester/generation", "--revision", "remote-code"]
assert run(["compress", "{tmp_path}/clip.mkv", *remote, "-o", "{tmp_path}/clip.fsv", "--force"]) == 0
assert run(["generate", *remote, "-o", "{tmp_path}/remote.mkv", *options]) == 0
assert run(["compress", "{tmp_path}/clip.mkv", "-m", "tester/nothing", "-o", "{tmp_path}/b.fsv"]) == 1
""",
        home="reader",
    )
    assert not (tmp_path / "b.fsv").exists()


@pytest.mark.slow
def test_the_example_of_publishing_runs(client, hub):
    script = Path(__file__).resolve().parents[1] / "examples" / "publish_and_load.py"
    arguments = [str(script), "tester/example", "--model", "generation"]
    printed = client(f"import runpy; sys.argv = {arguments!r}; runpy.run_path(sys.argv[0])").stdout
    assert "tester/example@main: a GapDiTPipeline with a FrameSelectVAE" in printed
    assert "tester/example@remote-code: a GapDiTPipeline with a FrameSelectVAE" in printed
    assert set(hub.repositories["tester/example"].branches) == {"main", "remote-code"}


@pytest.mark.slow
def test_a_hub_that_refuses_is_named_in_one_line(client):
    errors = client(RUN + 'assert run(["push", "compression", "bad name/x"]) == 1\n', HF_HUB_OFFLINE="0").stderr
    assert any(line.startswith("error: ") and "bad name" in line for line in errors.splitlines())
