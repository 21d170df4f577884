"""What holds for every test: no network, one thread, the same random numbers."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The outcome of a test depends neither on its neighbours nor on their order."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
