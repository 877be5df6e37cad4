r"""Sends an image or a video through an autoencoder and back, and measures what is lost.

python tests/examples/reconstruct_with_any_autoencoder.py clip.mp4 back.mp4
python tests/examples/reconstruct_with_any_autoencoder.py clip.mp4 back.mp4 \
    --vae Wan-AI/Wan2.1-T2V-1.3B-Diffusers --subfolder vae
"""

from __future__ import annotations

import argparse

from diffusers import AutoModel

from diffusers_vidvae import VideoReconstructionPipeline, demo_model


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("clip", help="image or video")
parser.add_argument("output", help="image or video to write")
parser.add_argument("--vae", default=demo_model(), help="any image or video autoencoder of diffusers, or one of ours")
parser.add_argument("--subfolder", default=None, help="where in a pipeline it lies")
options = parser.parse_args()

subfolder = "autoencoder_kl_3d" if options.vae == demo_model() else options.subfolder
vae = AutoModel.from_pretrained(options.vae, subfolder=subfolder)
pipe = VideoReconstructionPipeline(vae)
pipe.set_progress_bar_config(disable=True)

result = pipe.reconstruct_file(options.clip, options.output, compute_metrics=True, overwrite=True)
print(f"{type(vae).__name__}: {result.num_frames} frames of {result.width}x{result.height} in {result.output}")
print({name: value for name, value in result.metrics.items() if name in ("psnr", "ssim", "temporal_psnr")})
