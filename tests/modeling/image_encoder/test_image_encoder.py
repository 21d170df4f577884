"""The image encoder from images to tokens."""

import pytest
import torch
from detectron2.structures import ImageList

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.image_encoder import ImageEncoder, RegionTargets


@pytest.fixture
def encoder(tiny_config) -> ImageEncoder:
    encoder = ImageEncoder(tiny_config).eval()
    # Changed, as with initial values box corrections and sampling offsets do not depend on the image.
    for parameter in encoder.regions.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def batch_of(*images: torch.Tensor) -> ImageList:
    return ImageList.from_tensors(list(images), 32)


def parts(encoding, index: int = 0) -> dict[str, torch.Tensor]:
    return {
        "global": encoding.global_tokens[index],
        "proposals": encoding.proposal_tokens[index],
        **{name: x[index] for name, x in vars(encoding.proposals).items() if isinstance(x, torch.Tensor)},
    }


def test_shapes(encoder):
    encoding, supervision = encoder(batch_of(torch.randn(3, 64, 96), torch.randn(3, 50, 70)))
    assert supervision is None
    # Two pools and the backbone's last map, of stride 32.
    assert encoding.global_tokens.shape == (2, 2 + 2 * 3, 32)
    assert encoding.global_valid.shape == (2, 2 + 6)
    assert encoding.proposal_tokens.shape == (2, 12, 32)
    proposals = encoding.proposals
    assert proposals.semantics.shape == (2, 12, 32)
    assert proposals.boxes.shape == (2, 12, 4)
    assert proposals.masks.shape == (2, 12, 16, 24)  # stride 4
    assert proposals.objectness.shape == (2, 12)
    assert ((proposals.boxes >= 0) & (proposals.boxes <= 1)).all()


def test_the_largest_image_of_a_batch_is_encoded_as_alone(encoder):
    large, small = torch.randn(3, 64, 96), torch.randn(3, 40, 60)
    alone, _ = encoder(batch_of(large))
    together, _ = encoder(batch_of(small, large))
    torch.testing.assert_close(parts(together, 1), parts(alone), atol=1e-4, rtol=1e-3)


def test_the_order_of_a_batch_does_not_matter(encoder):
    a, b = torch.randn(3, 64, 96), torch.randn(3, 40, 60)
    forth, back = encoder(batch_of(a, b))[0], encoder(batch_of(b, a))[0]
    for i in range(2):
        torch.testing.assert_close(parts(forth, i), parts(back, 1 - i), atol=1e-4, rtol=1e-3)


def test_without_gradients_the_encoding_is_the_same(encoder):
    images = batch_of(torch.randn(3, 64, 64), torch.randn(3, 48, 64))
    with torch.no_grad():
        gathered, _ = encoder(images)
    torch.testing.assert_close(parts(encoder(images)[0], 1), parts(gathered, 1), atol=1e-4, rtol=1e-3)


def test_targets_do_not_change_the_encoding(encoder):
    images = batch_of(torch.randn(3, 64, 64))
    targets = RegionTargets(
        boxes=torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]),
        masks=torch.ones(1, 1, 64, 64, dtype=torch.bool),
        labels=torch.zeros(1, 1, dtype=torch.int64),
        valid=torch.ones(1, 1, dtype=torch.bool),
    )
    without, _ = encoder(images)
    with_targets, supervision = encoder(images, targets)
    torch.testing.assert_close(parts(with_targets), parts(without), atol=1e-4, rtol=1e-3)
    assert len(supervision.matches.image) == 1


def test_every_weight_but_the_losses_own_reaches_the_tokens(encoder):
    encoding, _ = encoder(batch_of(torch.randn(3, 64, 64)))
    (encoding.global_tokens.sum() + encoding.proposal_tokens.square().sum()).backward()
    unreached = {name for name, p in encoder.named_parameters() if p.grad is None and not name.startswith("centres.")}
    # What only selects or scores proposals learns from the losses alone.
    assert unreached <= {
        name for name, _ in encoder.named_parameters() if "objectness" in name or "one_to_many" in name
    } | {name for name, _ in encoder.named_parameters() if "select.box_head" in name or "denoising" in name}


def test_the_mean_global_token_needs_no_region_network(encoder):
    images = batch_of(torch.randn(3, 64, 96), torch.randn(3, 40, 60))
    expected = encoder(images)[0].mean_global_token()
    torch.testing.assert_close(encoder.mean_global_token(images), expected)
    for part in (encoder.regions.encoder, encoder.regions.decoder):
        part.forward = None
    torch.testing.assert_close(encoder.mean_global_token(images), expected)


def test_images_without_padding_are_encoded_alike_with_and_without_the_flag(encoder, monkeypatch):
    images = batch_of(torch.randn(3, 64, 96), torch.randn(3, 64, 96))
    found, _ = encoder(images)
    monkeypatch.setattr("uniperceiver_v2.modeling.image_encoder.image_encoder.has_padding", lambda images: True)
    expected, _ = encoder(images)
    torch.testing.assert_close([parts(found, i) for i in range(2)], [parts(expected, i) for i in range(2)])


def test_a_backbone_that_is_not_registered_is_named(tiny_config):
    tiny_config.MODEL.BACKBONE.NAME = "build_hugging&ace_backbone"
    with pytest.raises(UserError, match=r"MODEL\.BACKBONE\.NAME.*did you mean 'build_huggingface_backbone'"):
        ImageEncoder(tiny_config)
