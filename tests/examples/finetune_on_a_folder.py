r"""Fine-tunes the embedded FrameSelectVAE on a folder of videos and images, and compresses with what came out.

python tests/examples/finetune_on_a_folder.py my_videos run [SECTION.KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers_vidvae import FrameSelectVAE, VideoCompressionPipeline
from diffusers_vidvae.training import train_frame_select_vae


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", help="videos and images; subfolders count, too")
parser.add_argument("output", help="folder of the run: checkpoints, metrics, contact sheets and the model")
parser.add_argument("overrides", nargs="*", help="values of the configuration to replace, such as run.max_steps=500")
options = parser.parse_args()

settings = [f"data.folders=[{options.folder}]", f"run.output_dir={options.output}", *options.overrides]
folder = train_frame_select_vae.main("frame_select_vae_finetune.yaml", settings)

vae = FrameSelectVAE.from_pretrained(folder)
pipe = VideoCompressionPipeline(vae)
pipe.set_progress_bar_config(disable=True)
clip = next(
    path for path in sorted(Path(options.folder).rglob("*")) if path.is_file() and not path.name.startswith(".")
)
compressed = pipe.compress(clip)
print(f"{folder} keeps {len(compressed.positions)} of {compressed.header.num_frames} frames of {clip.name}")
