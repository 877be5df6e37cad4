r"""A page to try models on: compress clips with sliders, and generate them; `vidvae app` serves it.

Needs the extra `app`, Gradio.
"""

from __future__ import annotations
