r"""Generates a video from a prompt, with a model that was trained with captions.

python tests/examples/generate_from_a_prompt.py "a large red disc moves fast to the left on a blue background"
    generated.mp4 [--model FOLDER_OR_HUB_ID]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from diffusers_vidvae import GapDiTPipeline, demo_model
from diffusers_vidvae.media import VideoWriter


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("prompt", help="what the video is to show")
parser.add_argument("output", help="video to write")
parser.add_argument("--model", default=demo_model(), help="folder or Hub id; default: the model in the package")
parser.add_argument("--guidance-scale", type=float, default=4.0, help="how closely to follow the prompt")
parser.add_argument("--frames", type=int, default=16, help="length of the video")
parser.add_argument("--steps", type=int, default=50, help="steps of the scheduler")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

pipe = GapDiTPipeline.from_pretrained(options.model)
pipe.set_progress_bar_config(disable=True)

output = pipe(
    prompt=options.prompt,
    guidance_scale=options.guidance_scale,
    num_frames=options.frames,
    num_inference_steps=options.steps,
    generator=torch.Generator().manual_seed(options.seed),
)
with VideoWriter(options.output, fps=12, overwrite=True) as writer:
    writer.write(np.stack([np.asarray(frame) for frame in output.frames[0]]))
print(f"{len(output.frames[0])} frames in {options.output}, latent frames at {output.positions[0].tolist()}")
