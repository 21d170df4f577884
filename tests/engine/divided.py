"""Whether this PyTorch can divide a model among processes."""

import pytest

from uniperceiver_v2.engine import sharding
from uniperceiver_v2.errors import UserError


def is_supported() -> bool:
    try:
        sharding._fully_shard()
    except UserError:
        return False
    return True


needs_support = pytest.mark.skipif(not is_supported(), reason="this PyTorch cannot divide such a model")
