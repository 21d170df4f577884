"""Operations that are counted on the meta device."""

import sys

import pytest

from uniperceiver_v2.files import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "projects/uniperceiver_v2/benchmarks"))
try:
    import joint_operations
finally:
    sys.path.pop(0)


@pytest.fixture
def counted(tiny_config):
    return joint_operations.Counted(tiny_config)


def test_an_image_of_twice_the_side_has_four_times_the_operations(counted):
    small, large = (counted.image(side)[0] for side in (128, 256))
    assert large["backbone"] == pytest.approx(4 * small["backbone"], rel=0.01)
    assert 2 < large["region_network"] / small["region_network"] < 4, "queries are as many"


def test_texts_have_the_operations_of_their_products(counted, tiny_config):
    config = counted.model.text_encoder.model.config
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    parts, tokens = counted.texts(5, 7)
    products = 2 * 5 * 7 * layers * (4 * width**2 + 2 * width * inner) + 2 * 5 * 7 * width * tokens.shape[-1]
    attention = 2 * 2 * 5 * layers * 7 * 7 * width
    assert parts["text_encoder"] in (products, products + attention)  # a kernel of attention may not be counted


def test_experts_count_as_a_dense_network(counted, tiny_config):
    (_, dense), *_ = (layer.ffn.weights() for layer in counted.model.decoder.layers)
    node = tiny_config.MODEL.UNIPERCEIVER_V2.DECODER
    assert dense[0].shape[1] == node.FFN_DIM * node.ACTIVE_EXPERTS


def test_every_kind_of_the_joint_training_is_counted(counted, tiny_config):
    kinds = {tiny_config.TASKS[name].KIND: name for name in tiny_config.TASKS.NAMES}
    kinds.pop("grounding", None)
    assert len(kinds) == 5
    tiny_config.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING = ["text_encoder"]
    for kind, name in kinds.items():
        image, _ = joint_operations.of_task(counted, tiny_config, name)
        assert (image["backbone"] > 0) == (kind != "language_modelling")
        assert image["decoder"] > 0
        extra = joint_operations.trained(image, tiny_config) - 3 * image.total()
        assert extra == image["text_encoder"], "passes forwards once more"
