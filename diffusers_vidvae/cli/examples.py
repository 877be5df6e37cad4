"""One example for every command, shown by its `--help`; each runs as it stands in a folder with the files it names."""

from __future__ import annotations


# In an order in which each finds what those before it wrote, but for an original checkpoint and a repository.
EXAMPLES = {
    "demo-clip": "vidvae demo-clip clip.mp4",
    "compress": "vidvae compress clip.mp4 --output clip.fsv",
    "info": "vidvae info clip.fsv",
    "decompress": "vidvae decompress clip.fsv --output back.mp4",
    "compare": "vidvae compare clip.mp4 clip.fsv --output compared.html",
    "reconstruct": "vidvae reconstruct clip.mp4 --output reconstructed.mp4",
    "evaluate": "vidvae evaluate clip.mp4 --rate 0.25",
    "generate": 'vidvae generate -o generated.mp4 --prompt "a large red disc stands still on a blue background"',
    "app": "vidvae app --export-space space",
    "demo": "vidvae demo tour",
    "stats": "vidvae stats clip.mp4",
    "index": "vidvae index clip.mp4 --output clips.jsonl",
    "encode-dataset": "vidvae encode-dataset clip.mp4 --output latents --num-clips 4",
    "export": "vidvae export --output exported --format torch --part decoder",
    "train": "vidvae train frame-select-vae --config frame_select_vae_cpu.yaml run.max_steps=5",
    "convert": "vidvae convert vae_pytorch.pt --output model",
    "push": "vidvae push model owner/name",
}
