r"""Training the three models, and what it reads.

`train_frame_select_vae`, `train_autoencoder_kl_3d` and `train_gap_dit` each hold a model's losses and validation;
`trainer` is the loop they share. `sources` and `media_index` find files, `folders` and `data` make clips of them,
`encoding` and `latent_shards` turn these into latents once, `text` adds captions.
"""
