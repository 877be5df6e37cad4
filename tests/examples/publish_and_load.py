r"""Publishes a pipeline on the Hub with a model card, and loads it as anybody would.

python tests/examples/publish_and_load.py owner/name [--model FOLDER]   # after `hf auth login`
"""

from __future__ import annotations

import argparse

from diffusers import DiffusionPipeline

import diffusers_vidvae


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("repository", help="owner/name; made if absent")
parser.add_argument("--model", default=diffusers_vidvae.demo_model(), help="folder of a pipeline")
options = parser.parse_args()

pipe = DiffusionPipeline.from_pretrained(options.model)
print(pipe.push_to_hub(options.repository))

# For people without this package, on a branch of its own: with the source, for trust_remote_code=True.
print(pipe.push_to_hub(options.repository, revision="remote-code", standalone=True))

for revision in ("main", "remote-code"):
    loaded = DiffusionPipeline.from_pretrained(options.repository, revision=revision)
    print(f"{options.repository}@{revision}: a {type(loaded).__name__} with a {type(loaded.vae).__name__}")
