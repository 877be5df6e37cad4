from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusers_vidvae.conversion.checkpoints import Checkpoint, CheckpointError
from diffusers_vidvae.conversion.convert_frame_select_vae import convert
from diffusers_vidvae.conversion.orbax import open_orbax


def as_flax_tree(state_dict: dict[str, torch.Tensor]) -> dict:
    """Lays a state dict of the PyTorch port out as Flax NNX saves the model it was ported from."""
    tree: dict = {}
    for key, tensor in state_dict.items():
        *path, name = key.split(".")
        array = tensor.numpy()
        is_norm = "norm" in path[-1] if path else False
        if name == "weight" and not is_norm:
            name = "kernel"
            if array.ndim == 2:
                array = array.T
            elif path[-1] == "upsample":
                array = np.transpose(array[:, :, ::-1, ::-1, ::-1], (2, 3, 4, 0, 1))
            else:
                array = np.transpose(array, (2, 3, 4, 1, 0))
        elif name == "weight":
            name = "scale"
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = {"value": np.ascontiguousarray(array)}
    return tree


def test_orbax_checkpoint_gives_the_weights_of_the_torch_file(shared_parity, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint", reason='needs the extra "jax"')
    original = shared_parity / "vae_pytorch_tiny.pt"
    state_dict = torch.load(original, weights_only=True)
    tree = {
        "model": as_flax_tree({key: value for key, value in state_dict.items() if "ROPE" not in key}),
        "optimizer": {"step": {"value": np.zeros((), np.int32)}, "mu": {"value": np.zeros((3, 3), np.float32)}},
    }
    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(tmp_path / "vae", tree)
    checkpointer.wait_until_finished()

    expected = convert(Checkpoint.open(original)).state_dict()
    actual = convert(open_orbax(tmp_path / "vae")).state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def test_transposed_convolutions_agree_with_flax(tmp_path):
    nnx = pytest.importorskip("flax.nnx", reason='needs the extra "jax"')
    from diffusers_vidvae.conversion.orbax import _torch_tensor

    layer = nnx.ConvTranspose(3, 5, kernel_size=(1, 2, 2), strides=(1, 2, 2), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 3, 3)).astype(np.float32)
    expected = torch.from_numpy(np.array(layer(x))).permute(0, 4, 1, 2, 3)
    weight = _torch_tensor("decoders.0.upsample.weight", np.array(layer.kernel[...]))
    actual = torch.nn.functional.conv_transpose3d(torch.from_numpy(x).permute(0, 4, 1, 2, 3), weight, stride=(1, 2, 2))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not the folder of an Orbax checkpoint"):
        open_orbax(tmp_path)
