"""How merge and restore enter a diffusion model's denoiser and leave it again.

No block needs surgery here: attention and feed-forward modules become ``restore(f(merge(x)))`` by
a class swap, and the denoiser itself opens and closes the state of one forward.
"""
