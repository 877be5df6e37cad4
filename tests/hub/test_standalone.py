r"""Repositories that carry their source, with and without this package: opened, saved again, taken over by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import AutoModel, DiffusionPipeline

from diffusers_vidvae import FrameSelectVAE, GapDiTPipeline, VideoCompressionPipeline, VideoReconstructionPipeline
from diffusers_vidvae.hub import export_standalone


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory) -> Path:
    """A pipeline and its autoencoder, exported."""
    folder = tmp_path_factory.mktemp("exported")
    pipe = GapDiTPipeline.from_pretrained(saved / "generation")
    export_standalone(pipe, folder / "generation")
    export_standalone(pipe.vae, folder / "vae")
    return folder


TRUST = pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}], ids=["untrusted", "trusted"])


@TRUST
def test_installed_classes_come_first(exported, options):
    pipe = DiffusionPipeline.from_pretrained(exported / "generation", **options)
    assert type(pipe) is GapDiTPipeline and type(pipe.vae) is FrameSelectVAE
    vae = AutoModel.from_pretrained(str(exported / "generation"), subfolder="vae", **options)
    assert type(vae) is FrameSelectVAE
    assert type(AutoModel.from_pretrained(str(exported / "vae"), **options)) is FrameSelectVAE


def test_trust_is_still_asked_for_other_peoples_code(tmp_path, exported):
    FrameSelectVAE.from_pretrained(exported / "vae").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "theirs.FrameSelectVAE"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModel.from_pretrained(str(tmp_path))


def test_folders_that_diffusers_saved_by_remote_code_open(saved, tmp_path):
    """Without the exporter's help, diffusers writes module names of its cache and no source."""
    pipe = GapDiTPipeline.from_pretrained(saved / "generation")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["vae"] = ["diffusers_modules.local.vidvae_frame_select_vae_v1", "FrameSelectVAE"]
    index["transformer"] = ["diffusers_modules.local.vidvae_gap_dit_v1", "GapDiT"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert type(DiffusionPipeline.from_pretrained(tmp_path).vae) is FrameSelectVAE


def test_subclassed_autoencoders_move_between_pipelines(saved):
    class Finetuned(FrameSelectVAE):
        pass

    vae = Finetuned.from_pretrained(saved / "generation", subfolder="vae")
    pipe = VideoCompressionPipeline(vae)
    for target in (VideoReconstructionPipeline, VideoCompressionPipeline):
        assert target.from_pipe(pipe).vae is vae
    generation = GapDiTPipeline.from_pretrained(saved / "generation", vae=vae)
    assert VideoCompressionPipeline.from_pipe(generation).vae is vae


@pytest.mark.slow
def test_remote_pipelines_are_saved_with_their_source(client, exported, tmp_path):
    client(
        f"""
        pipe = DiffusionPipeline.from_pretrained("{exported}/generation", trust_remote_code=True)
        assert type(pipe).__module__.startswith("diffusers_modules.")
        assert type(pipe).from_pipe(pipe).vae is pipe.vae
        pipe.save_pretrained("{tmp_path}/again")
        """,
        WITHOUT_PACKAGE="1",
    )
    client(
        f"""
        pipe = DiffusionPipeline.from_pretrained("{tmp_path}/again", trust_remote_code=True)
        same(generate(pipe), "generation.pt")
        """,
        home="another",
        WITHOUT_PACKAGE="1",
    )
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["vae"] == ["vidvae_frame_select_vae_v1", "FrameSelectVAE"]
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "again")) is GapDiTPipeline
