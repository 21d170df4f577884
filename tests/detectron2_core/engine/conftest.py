import logging

import pytest


@pytest.fixture(autouse=True)
def restored_loggers():
    """Restores the process's loggers, which training sets up, after each test."""
    names = ("detectron2", "fvcore")
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names}
    yield
    for name, (handlers, propagate) in before.items():
        logger = logging.getLogger(name)
        for handler in [handler for handler in logger.handlers if handler not in handlers]:
            logger.removeHandler(handler)
        logger.propagate = propagate
