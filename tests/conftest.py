"""One thread: the models of the tests are too small to share, and busy cores make threads wait."""

import torch

torch.set_num_threads(1)
