r"""Compresses a clip to a file of latents, and brings it back.

python tests/examples/compress_a_clip.py clip.mp4 back.mp4 [--model FOLDER_OR_HUB_ID] [--rate 0.25]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers_vidvae import VideoCompressionPipeline, demo_model


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("clip", type=Path, help="video, animation or image")
parser.add_argument("output", type=Path, help="video to write")
parser.add_argument("--model", default=demo_model(), help="folder or Hub id; default: the model in the package")
parser.add_argument("--rate", type=float, default=0.25, help="share of the frames to keep")
options = parser.parse_args()

pipe = VideoCompressionPipeline.from_pretrained(options.model)
pipe.set_progress_bar_config(disable=True)

compressed = pipe.compress(options.clip, rate=options.rate)
file = options.output.with_suffix(".fsv")
compressed.save(file, overwrite=True)

pipe.decompress_file(file, options.output, overwrite=True)
header = compressed.header
print(f"{options.clip.stat().st_size} bytes of {options.clip.name}, {file.stat().st_size} bytes of {file.name}")
print(f"kept {len(compressed.positions)} of {header.num_frames} frames: {compressed.positions.tolist()}")
