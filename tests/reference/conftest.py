"""One thread for torch: the reference models here are too small to share, and test machines are busy."""

import torch

torch.set_num_threads(1)
