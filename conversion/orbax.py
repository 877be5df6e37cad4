r"""Reading the JAX/Flax (Orbax) checkpoints that floatingtrees/video-VAE trains, in the layout of their PyTorch port.

- Flax NNX stores a leaf under `value`, and lists as numbered dictionaries; both become dotted keys.
- `kernel` and `scale` become `weight`.
- Linear kernels `(in, out)` are transposed.
- Convolution kernels `(T, H, W, in, out)` become `(out, in, T, H, W)`.
- Transposed convolution kernels, `(T, H, W, in, out)` too, become `(in, out, T, H, W)` flipped along T, H and W:
  Flax correlates where PyTorch convolves.
- Optimizer and random states are not read.

Needs the extra `jax` (`pip install "diffusers-vidvae[jax]"`).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers_vidvae.errors import CheckpointError

from .checkpoints import Checkpoint, Shape


if TYPE_CHECKING:
    import numpy as np
    import torch


_SKIPPED = re.compile(r"(^|\.)(rngs?|dropout)(\.|$)")


def is_orbax(path: str | Path) -> bool:
    r"""Whether a path is the folder of an Orbax checkpoint."""
    return (Path(path) / "_METADATA").is_file()


def open_orbax(path: str | Path) -> Checkpoint:
    r"""Opens the folder of an Orbax checkpoint; tensors are those of its `model`, or of its root without one.

    Raises:
        CheckpointError: The folder is no Orbax checkpoint, or Orbax is not installed.
    """
    path = Path(path).resolve()
    if not is_orbax(path):
        raise CheckpointError(f"{path} is not the folder of an Orbax checkpoint.")
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise CheckpointError(f'Reading {path} needs Orbax: pip install "diffusers-vidvae[jax]".') from error

    metadata = ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree
    tree = {"model": metadata["model"]} if "model" in metadata else metadata
    leaves = {key: leaf for key, leaf in _flatten(tree).items() if not _SKIPPED.search(key)}

    @cache
    def restored() -> dict[str, np.ndarray]:
        return _flatten(_restore(ocp, path, tree))

    names = {_torch_key(key): key for key in leaves}
    shapes = {name: _torch_shape(name, tuple(leaves[key].shape)) for name, key in names.items()}
    return Checkpoint(str(path), shapes, lambda name: _torch_tensor(name, restored()[names[name]]))


def _restore(ocp: Any, path: Path, tree: dict) -> dict:
    """Restores the leaves of `tree` as NumPy arrays and nothing else of the checkpoint."""
    import jax
    import numpy as np

    item = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    arguments = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    return checkpointer.restore(path, args=arguments)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves = {}
    for name, subtree in tree.items():
        leaves.update(_flatten(subtree, f"{prefix}.{name}" if prefix else str(name)))
    return leaves


def _torch_key(key: str) -> str:
    key = re.sub(r"^model\.", "", re.sub(r"\.(value|raw_value)$", "", key))
    return re.sub(r"\.(kernel|scale)$", ".weight", key)


def _axes(name: str, num_axes: int) -> tuple[int, ...]:
    if name.endswith(".weight") and num_axes == 2:
        return (1, 0)
    if num_axes == 5:
        return (3, 4, 0, 1, 2) if _is_transposed_convolution(name) else (4, 3, 0, 1, 2)
    return tuple(range(num_axes))


def _is_transposed_convolution(name: str) -> bool:
    return name.endswith(".upsample.weight")


def _torch_shape(name: str, shape: Shape) -> Shape:
    return tuple(shape[axis] for axis in _axes(name, len(shape)))


def _torch_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    import numpy as np
    import torch

    # bfloat16 is not a NumPy type of its own; float32 holds it exactly.
    is_bfloat16 = array.dtype.name == "bfloat16"
    array = np.transpose(array.astype(np.float32) if is_bfloat16 else array, _axes(name, array.ndim))
    if array.ndim == 5 and _is_transposed_convolution(name):
        array = array[:, :, ::-1, ::-1, ::-1]
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(torch.bfloat16) if is_bfloat16 else tensor
