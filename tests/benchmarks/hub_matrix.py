r"""Which loader loads which kind of repository, from a folder and from a Hub: `python tests/benchmarks/hub_matrix.py`.

Every case runs for real, against a Hub on this machine, and its output is compared with that of what was published:
"same" means equal to the bit. Users with and without this package sit in processes of their own, with empty caches.
Takes about a minute and prints a table in Markdown.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.hub.clients import run_client, save_pipelines  # noqa: E402
from tests.hub.server import LocalHub, local_hub  # noqa: E402


class Case(NamedTuple):
    repository: str
    loader: str
    load: str
    """Expression that loads, with `at` for the place; a pipeline generates, a model reconstructs."""
    online: bool = True


PACKAGE, PATHS, STANDALONE = "package flavour", "full module paths", "standalone flavour"
MODEL, STANDALONE_MODEL = "model, package flavour", "model, standalone flavour"
NAMES = {
    PACKAGE: "generation",
    PATHS: "paths",
    STANDALONE: "standalone",
    MODEL: "vae",
    STANDALONE_MODEL: "standalone-vae",
}

WITH_PACKAGE = [
    Case(PACKAGE, "`GapDiTPipeline`", "GapDiTPipeline.from_pretrained(at)"),
    Case(PACKAGE, "`DiffusionPipeline`", "DiffusionPipeline.from_pretrained(at)"),
    Case(PACKAGE, "`AutoModel(subfolder)`", "AutoModel.from_pretrained(at, subfolder='vae')"),
    Case(PACKAGE, "`FrameSelectVAE(subfolder)`", "FrameSelectVAE.from_pretrained(at, subfolder='vae')"),
    Case(PACKAGE, "`DiffusionPipeline(revision)`", "DiffusionPipeline.from_pretrained(at, revision='next')"),
    Case(PACKAGE, "`local_files_only` afterwards", "DiffusionPipeline.from_pretrained(at, local_files_only=True)"),
    Case(PACKAGE, "`HF_HUB_OFFLINE=1` afterwards", "DiffusionPipeline.from_pretrained(at)", online=False),
    Case(MODEL, "`AutoModel`", "AutoModel.from_pretrained(at)"),
    Case(MODEL, "`FrameSelectVAE`", "FrameSelectVAE.from_pretrained(at)"),
    Case(PATHS, "`GapDiTPipeline`", "GapDiTPipeline.from_pretrained(at)"),
    Case(PATHS, "`DiffusionPipeline`", "DiffusionPipeline.from_pretrained(at)"),
    Case(PATHS, "`AutoModel(subfolder)`", "AutoModel.from_pretrained(at, subfolder='vae')"),
    Case(STANDALONE, "`GapDiTPipeline`, no remote code", "GapDiTPipeline.from_pretrained(at)"),
    Case(STANDALONE, "`FrameSelectVAE(subfolder)`", "FrameSelectVAE.from_pretrained(at, subfolder='vae')"),
    Case(STANDALONE, "`DiffusionPipeline`, no trust", "DiffusionPipeline.from_pretrained(at)"),
    Case(STANDALONE, "`DiffusionPipeline`, trust", "DiffusionPipeline.from_pretrained(at, trust_remote_code=True)"),
    Case(STANDALONE_MODEL, "`FrameSelectVAE`, no remote code", "FrameSelectVAE.from_pretrained(at)"),
    Case(STANDALONE_MODEL, "`AutoModel`, trust", "AutoModel.from_pretrained(at, trust_remote_code=True)"),
]

WITHOUT_PACKAGE = [
    Case(PACKAGE, "`DiffusionPipeline`", "DiffusionPipeline.from_pretrained(at)"),
    Case(STANDALONE, "`DiffusionPipeline`, trust", "DiffusionPipeline.from_pretrained(at, trust_remote_code=True)"),
    Case(STANDALONE, "`DiffusionPipeline`, no trust", "DiffusionPipeline.from_pretrained(at)"),
    Case(
        STANDALONE,
        "`AutoModel(subfolder)`, trust",
        "AutoModel.from_pretrained(at, subfolder='vae', trust_remote_code=True)",
    ),
    Case(STANDALONE_MODEL, "`AutoModel`, trust", "AutoModel.from_pretrained(at, trust_remote_code=True)"),
    Case(STANDALONE_MODEL, "`AutoModel`, no trust", "AutoModel.from_pretrained(at)"),
]

PUBLISH = """
import json
from diffusers_vidvae.hub import export_standalone, push_folder
pipe = GapDiTPipeline.from_pretrained("generation")
export_standalone(pipe, "standalone")
export_standalone(pipe.vae, "standalone-vae")
pipe.vae.save_pretrained("vae")
pipe.save_pretrained("paths")
# What diffusers writes where this package has not registered its classes.
with open("paths/model_index.json") as file:
    index = json.load(file)
for name in ("vae", "transformer", "scheduler"):
    index[name][0] = type(getattr(pipe, name)).__module__
with open("paths/model_index.json", "w") as file:
    json.dump(index, file)
for name in ("generation", "paths", "standalone", "vae", "standalone-vae"):
    push_folder(name, f"tester/{name}", standalone=name.startswith("standalone"))
push_folder("generation", "tester/generation", revision="next")
clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
torch.save(pipe.vae(clip).sample, "vae.pt")
"""

TRY = """
import json
clip = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
outcomes = []
for load, at in {cases}:
    try:
        loaded = eval(load, dict(globals(), at=at))
        same(*((generate(loaded), "generation.pt") if hasattr(loaded, "vae") else (loaded(clip).sample, "vae.pt")))
        outcomes.append("same")
    except Exception as error:
        outcomes.append(type(error).__name__ + ": " + (str(error).splitlines() or [""])[0])
print("OUTCOMES" + json.dumps(outcomes))
"""


def outcomes(hub: LocalHub, folder: Path, home: Path, cases: list[tuple[str, str]], **environment: str) -> list[str]:
    r"""What came of loading expressions at places, in one process."""
    result = run_client(hub, folder, home, TRY.format(cases=repr(cases)), **environment)
    lines = [line for line in result.stdout.splitlines() if line.startswith("OUTCOMES")]
    if not lines:
        raise RuntimeError(result.stderr)
    return json.loads(lines[-1].removeprefix("OUTCOMES"))


def measure(hub: LocalHub, folder: Path, user: str, cases: list[Case], **environment: str) -> list[tuple[str, ...]]:
    rows = []
    for online in (True, False):
        chosen = [case for case in cases if case.online is online]
        if not chosen:
            continue
        home = folder / "homes" / user
        switches = {**environment, "HF_HUB_OFFLINE": "0" if online else "1"}
        places = [(case.load, NAMES[case.repository]) for case in chosen]
        local = outcomes(hub, folder, home, places, **switches)
        remote = outcomes(hub, folder, home, [(load, f"tester/{at}") for load, at in places], **switches)
        rows += [(case.repository, case.loader, *found) for case, *found in zip(chosen, local, remote, strict=True)]
    order = [(case.repository, case.loader) for case in cases]
    return sorted(rows, key=lambda row: order.index(row[:2]))


def shorten(outcome: str, length: int = 90) -> str:
    return outcome if len(outcome) <= length else outcome[:length].rstrip() + " ..."


def main():
    with tempfile.TemporaryDirectory() as temporary, local_hub() as hub:
        folder = Path(temporary)
        save_pipelines(folder)
        published = run_client(hub, folder, folder / "homes" / "publisher", PUBLISH)
        if published.returncode:
            raise RuntimeError(published.stderr)
        print("| user | repository | loader | folder | Hub |\n|---|---|---|---|---|")
        for user, cases, environment in (
            ("with the package", WITH_PACKAGE, {}),
            ("without", WITHOUT_PACKAGE, {"WITHOUT_PACKAGE": "1"}),
        ):
            for row in measure(hub, folder, user, cases, **environment):
                print("| " + " | ".join([user, *(shorten(cell.replace(temporary, "")) for cell in row)]) + " |")


if __name__ == "__main__":
    main()
