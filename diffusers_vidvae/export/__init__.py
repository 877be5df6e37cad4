r"""Encoders and decoders as graphs that run without this package: `torch.export` programs and ONNX.

```python
from diffusers_vidvae.export import export_autoencoder, open_export

export_autoencoder(vae, "exported", format="onnx", frames=(8, 64), height=(64, 512), width=(64, 512))
exported = open_export("exported")
pixels = exported.decode(exported.encode(clip).posterior.mode())
```
"""

from __future__ import annotations

from .folders import ExportedAutoencoder, export_autoencoder, open_export
from .sizes import SizeRange


__all__ = ["ExportedAutoencoder", "SizeRange", "export_autoencoder", "open_export"]
