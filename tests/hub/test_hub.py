"""Publishing on a Hub and loading from it, each user in a process and with a cache of its own."""

from __future__ import annotations

import ast
import json
import shutil

import pytest
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from huggingface_hub import ModelCard

from diffusers_vidvae import (
    FlowMatchGapScheduler,
    GapDiTPipeline,
    VideoCompressionPipeline,
    VideoReconstructionPipeline,
)
from diffusers_vidvae.hub import export_standalone
from diffusers_vidvae.hub.standalone import bundle_pipeline

from .server import local_hub


PUSH_ALL = """
for name in ("generation", "reconstruction", "compression"):
    DiffusionPipeline.from_pretrained(name).push_to_hub(f"tester/{name}")
"""


@pytest.mark.slow
def test_every_loader_gives_the_pushed_pipeline_back(client):
    client(
        PUSH_ALL
        + """
FrameSelectVAE.from_pretrained("generation", subfolder="vae").push_to_hub("tester/vae")
FlowMatchGapScheduler.from_pretrained("generation", subfolder="scheduler").push_to_hub("tester/scheduler")
"""
    )
    client(
        """
        for loader in (GapDiTPipeline, DiffusionPipeline):
            pipe = loader.from_pretrained("tester/generation")
            assert type(pipe) is GapDiTPipeline and type(pipe.scheduler) is FlowMatchGapScheduler
            same(generate(pipe), "generation.pt")
        same(reconstruct(DiffusionPipeline.from_pretrained("tester/reconstruction")), "reconstruction.pt")
        assert type(DiffusionPipeline.from_pretrained("tester/compression")) is VideoCompressionPipeline

        pipe.vae = AutoModel.from_pretrained("tester/generation", subfolder="vae")
        pipe.transformer = GapDiT.from_pretrained("tester/generation", subfolder="transformer")
        assert type(pipe.vae) is FrameSelectVAE
        same(generate(pipe), "generation.pt")
        pipe.vae = AutoModel.from_pretrained("tester/vae")
        pipe.scheduler = FlowMatchGapScheduler.from_pretrained("tester/scheduler")
        assert type(pipe.vae) is FrameSelectVAE and pipe.scheduler.config.shift == 2.0
        same(generate(pipe), "generation.pt")
        """,
        home="reader",
    )
    client(
        'same(generate(DiffusionPipeline.from_pretrained("tester/generation")), "generation.pt")',
        home="reader",
        HF_HUB_OFFLINE="1",
    )


@pytest.mark.slow
def test_standalone_repository_needs_no_package(client, hub):
    client(
        """
        GapDiTPipeline.from_pretrained("generation").push_to_hub("tester/generation")
        pipe = GapDiTPipeline.from_pretrained("generation")
        pipe.push_to_hub("tester/generation", revision="standalone", standalone=True)
        FrameSelectVAE.from_pretrained("generation", subfolder="vae").push_to_hub("tester/vae", standalone=True)
        """
    )
    assert json.loads(hub.files("tester/generation")["model_index.json"])["vae"] == [
        "diffusers_vidvae",
        "FrameSelectVAE",
    ]
    index = json.loads(hub.files("tester/generation", "standalone")["model_index.json"])
    assert index["vae"] == ["vidvae_frame_select_vae_v1", "FrameSelectVAE"]

    client(
        """
        options = {"revision": "standalone", "trust_remote_code": True}
        pipe = DiffusionPipeline.from_pretrained("tester/generation", **options)
        same(generate(pipe), "generation.pt")
        assert not any(name.split(".")[0] == "diffusers_vidvae" for name in sys.modules)

        vae = AutoModel.from_pretrained("tester/vae", trust_remote_code=True)
        clip = torch.rand(1, 3, 3, 16, 16) * 2 - 1
        assert torch.equal(vae(clip).sample, pipe.vae(clip).sample)
        """,
        home="stranger",
        WITHOUT_PACKAGE="1",
    )
    refused = client(
        'DiffusionPipeline.from_pretrained("tester/generation", revision="standalone")',
        home="careful",
        check=False,
        WITHOUT_PACKAGE="1",
    )
    assert refused.returncode and "trust_remote_code=True" in refused.stderr
    client(
        """
        from pathlib import Path
        pipe = GapDiTPipeline.from_pretrained("tester/generation", revision="standalone")
        assert type(pipe) is GapDiTPipeline and type(pipe.vae) is FrameSelectVAE
        same(generate(pipe), "generation.pt")
        assert not list(Path(os.environ["HF_MODULES_CACHE"]).rglob("vidvae_*"))
        """,
        home="owner",
    )


@pytest.mark.slow
def test_standalone_folders_of_every_pipeline_run_without_the_package(client, tmp_path):
    client(
        f"""
        from diffusers_vidvae.hub import export_standalone
        for name in ("generation", "reconstruction", "compression"):
            export_standalone(DiffusionPipeline.from_pretrained(name), "{tmp_path}/" + name)
        """
    )
    client(
        f"""
        def load(name):
            return DiffusionPipeline.from_pretrained("{tmp_path}/" + name, trust_remote_code=True)
        same(generate(load("generation")), "generation.pt")
        same(reconstruct(load("reconstruction")), "reconstruction.pt")
        pipe = load("compression")
        pipe.set_progress_bar_config(disable=True)
        compressed = pipe.compress(torch.rand(1, 3, 6, 16, 16) * 2 - 1)
        compressed.save("{tmp_path}/clip.fsv")
        frames = pipe.decompress(compressed, output_type="pt").frames
        assert frames.shape == (1, 6, 3, 16, 16)
        """,
        WITHOUT_PACKAGE="1",
    )


@pytest.mark.slow
def test_cards_say_what_it_is_and_are_kept(client, hub):
    client(PUSH_ALL)
    card = ModelCard(hub.files("tester/generation")["README.md"].decode())
    assert card.data.library_name == "diffusers" and card.data.license == "apache-2.0"
    assert {"diffusers-vidvae", "GapDiTPipeline", "video-generation"} <= set(card.data.tags)
    for text in ("floatingtrees/dynamic-frame-compression", "| `vae` | FrameSelectVAE |", "`sample_size` | `16`"):
        assert text in card.text
    assert "More Information Needed" not in card.text

    repository = hub.repositories["tester/generation"]
    repository.commit("main", {**hub.files("tester/generation"), "README.md": b"my own words"})
    client('DiffusionPipeline.from_pretrained("generation").push_to_hub("tester/generation")')
    assert hub.files("tester/generation")["README.md"] == b"my own words"


PUSH_PARTS = """
parts = {
    "generation": GapDiTPipeline.from_pretrained("generation"),
    "reconstruction": VideoReconstructionPipeline.from_pretrained("reconstruction"),
    "compression": VideoCompressionPipeline.from_pretrained("compression"),
}
parts["vae"], parts["transformer"], parts["scheduler"] = (
    parts["generation"].vae, parts["generation"].transformer, parts["generation"].scheduler
)
parts["kl_3d"] = parts["reconstruction"].vae
for name, part in parts.items():
    part.push_to_hub(f"tester/{name}")
    part.push_to_hub(f"tester/{name}-standalone", standalone=True)
"""


@pytest.mark.slow
def test_snippets_of_cards_run_as_printed(client, hub, tmp_path):
    client(PUSH_PARTS)
    snippets: dict[bool, list[str]] = {False: [], True: []}
    for name in hub.repositories:
        # What diffusers notes in a loaded configuration: the path on the machine that published it.
        assert not any(b'"_name_or_path":' in content for content in hub.files(name).values())
        card = hub.files(name)["README.md"].decode()
        snippets[name.endswith("-standalone")].append(card.split("```python\n")[1].split("```")[0])
    assert len(snippets[True]) == len(snippets[False]) == 7
    for standalone, texts in snippets.items():
        script = f"os.chdir({str(tmp_path)!r})\nfor text in {texts!r}: exec(text, {{}})"
        client(script, home=f"reader {standalone}", WITHOUT_PACKAGE="1" if standalone else "")
        for name in ("generated.gif", "clip.fsv"):
            assert (tmp_path / name).stat().st_size
            (tmp_path / name).unlink()


@pytest.mark.slow
def test_branches_pull_requests_and_private_repositories(client, hub):
    client(
        """
        from diffusers_vidvae.hub import push_folder
        push_folder("compression", "tester/secret", private=True)
        assert "/commit/" in push_folder("generation", "tester/secret", revision="next")
        assert push_folder("generation", "tester/secret", create_pr=True).endswith("/discussions/1")
        """
    )
    assert "tester/secret" in hub.private
    assert "VideoCompressionPipeline" in hub.files("tester/secret")["model_index.json"].decode()
    assert "GapDiTPipeline" in hub.files("tester/secret", "next")["model_index.json"].decode()
    assert "GapDiTPipeline" in hub.files("tester/secret", "refs/pr/1")["model_index.json"].decode()


def test_failed_uploads_say_so_and_commit_nothing(client, hub):
    hub.failures["commit"] = 500
    result = client(
        """
        from diffusers_vidvae.hub import HubError, push_folder
        try:
            push_folder("compression", "tester/broken")
        except HubError as error:
            print(error)
        try:
            push_folder("generation/no_such_folder", "tester/broken")
        except ValueError as error:
            print(error)
        try:
            push_folder("compression", "not a/name/at all")
        except ValueError as error:
            print(error)
        """
    )
    assert "Nothing was committed to tester/broken" in result.stdout
    assert "save a pipeline, model or scheduler there first" in result.stdout
    assert "is not the name of a repository" in result.stdout
    assert hub.files("tester/broken") == {}


@pytest.mark.slow
def test_broken_repositories_are_refused(client, hub):
    client('DiffusionPipeline.from_pretrained("generation").push_to_hub("tester/generation")')
    repository, files = hub.repositories["tester/generation"], hub.files("tester/generation")
    weights = "vae/diffusion_pytorch_model.safetensors"
    repository.commit("corrupted", {**files, weights: files[weights][:-100]})
    repository.commit("incomplete", {path: content for path, content in files.items() if path != weights})
    foreign = json.loads(files["model_index.json"]) | {"vae": ["somebodys_package", "TheirVAE"]}
    repository.commit("foreign", {**files, "model_index.json": json.dumps(foreign).encode()})
    result = client(
        """
        for revision in ("absent", "corrupted", "incomplete", "foreign"):
            try:
                GapDiTPipeline.from_pretrained("tester/generation", revision=revision)
            except Exception as error:
                print(revision, type(error).__name__, str(error).replace("\\n", " "))
        """,
        home="reader",
    )
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line}
    assert "absent" in lines["absent"] and "revision" in lines["absent"].lower()
    assert "safetensors" in lines["corrupted"].lower()
    assert "diffusion_pytorch_model" in lines["incomplete"]
    assert "somebodys_package" in lines["foreign"]


@pytest.mark.slow
def test_interrupted_downloads_are_resumed(client, hub):
    client('DiffusionPipeline.from_pretrained("generation").push_to_hub("tester/generation")')
    hub.cut_after = 3000
    client('same(generate(DiffusionPipeline.from_pretrained("tester/generation")), "generation.pt")', home="reader")
    assert hub.cut_after is None


@pytest.mark.slow
def test_large_files_go_through_lfs(saved, tmp_path, client, hub):
    hub.lfs_suffixes = (".safetensors",)
    client(
        """
        DiffusionPipeline.from_pretrained("generation").push_to_hub("tester/large")
        same(generate(DiffusionPipeline.from_pretrained("tester/large")), "generation.pt")
        """
    )
    assert any("lfs/verify" in request for request in hub.requests)
    assert len(hub.objects) == 2


def test_server_refuses_what_it_does_not_know():
    """The Hub of these tests fails loudly, so that a new request of huggingface_hub is noticed."""
    import urllib.error
    import urllib.request

    with local_hub() as hub, pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{hub.endpoint}/api/unknown")


def test_formats_of_newer_packages_are_refused(saved, tmp_path):
    folder = tmp_path / "newer"
    shutil.copytree(saved / "compression", folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_vidvae_format_version"] == 1
    index["_vidvae_format_version"] = 2
    (folder / "model_index.json").write_text(json.dumps(index))
    for loader in (VideoCompressionPipeline, DiffusionPipeline):
        with pytest.raises(ValueError, match="has format version 2, the installed diffusers-vidvae reads up to 1"):
            loader.from_pretrained(folder)


@pytest.mark.parametrize("pipeline_class", [GapDiTPipeline, VideoCompressionPipeline, VideoReconstructionPipeline])
def test_every_pipeline_fits_into_one_file(pipeline_class):
    tree = ast.parse(bundle_pipeline(pipeline_class))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level and node.module.split(".")[0] not in ("diffusers_vidvae", "av")


def test_standalone_folders_must_be_empty_and_hold_own_classes(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_standalone(FlowMatchGapScheduler(), tmp_path / "full")
    with pytest.raises(ValueError, match="not a class of diffusers_vidvae"):
        export_standalone(FlowMatchEulerDiscreteScheduler(), tmp_path / "other")
