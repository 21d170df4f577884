import detectron2.data.transforms as T
import numpy as np
import pytest


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def one_pixel(x, y, height=20, width=30):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[y, x] = 1
    return mask


def test_resize(image):
    transform = T.ResizeTransform(20, 30, 40, 15)
    assert transform.apply_image(image).shape == (40, 15, 3)
    assert transform.apply_image(image).dtype == np.uint8
    np.testing.assert_allclose(transform.apply_coords(np.array([[30.0, 20.0], [3.0, 1.0]])), [[15, 40], [1.5, 2]])
    np.testing.assert_allclose(transform.apply_box(np.array([[2.0, 3.0, 6.0, 9.0]])), [[1, 6, 3, 18]])
    restored = transform.inverse().apply_coords(transform.apply_coords(np.array([[7.0, 5.0]])))
    np.testing.assert_allclose(restored, [[7, 5]])


def test_resize_of_other_kinds_of_images(image):
    transform = T.ResizeTransform(20, 30, 10, 60)
    gray = image[:, :, :1]
    assert transform.apply_image(gray).shape == (10, 60, 1)
    np.testing.assert_array_equal(transform.apply_image(gray)[:, :, 0], transform.apply_image(gray[:, :, 0]))
    assert transform.apply_image(np.ones((20, 30), dtype=np.float32)) == pytest.approx(1)
    floats = transform.apply_image(image.astype(np.float32))
    assert floats.shape == (10, 60, 3) and floats.dtype == np.float32


def test_resize_of_labels_mixes_none(rng):
    labels = rng.choice(np.array([0, 7, 200], dtype=np.uint8), (20, 30))
    resized = T.ResizeTransform(20, 30, 33, 47).apply_segmentation(labels)
    assert set(np.unique(resized)) <= {0, 7, 200}


def test_resize_takes_images_of_its_size_only(image):
    with pytest.raises(AssertionError):
        T.ResizeTransform(10, 30, 5, 5).apply_image(image)


@pytest.mark.parametrize(
    "size, short, longest, expected",
    [
        ((20, 30), 40, 1000, (40, 60)),
        ((30, 20), 40, 1000, (60, 40)),
        ((20, 30), 40, 45, (30, 45)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 427), 800, 1333, (1199, 800)),
    ],
)
def test_shortest_edge_shape(size, short, longest, expected):
    assert T.ResizeShortestEdge.get_output_shape(*size, short, longest) == expected


def test_resize_shortest_edge_draws(image):
    choice = T.ResizeShortestEdge([10, 40], sample_style="choice")
    drawn = {choice.get_transform(image).new_h for _ in range(40)}
    assert drawn == {10, 40}
    between = {T.ResizeShortestEdge((10, 13)).get_transform(image).new_h for _ in range(80)}
    assert between == {10, 11, 12, 13}
    assert isinstance(T.ResizeShortestEdge(0).get_transform(image), T.NoOpTransform)
    with pytest.raises(AssertionError):
        T.ResizeShortestEdge((10, 20, 30), sample_style="range")


def test_resize_augmentation(image):
    assert T.Resize((5, 7)).get_transform(image).apply_image(image).shape == (5, 7, 3)
    assert T.Resize(9).get_transform(image).apply_image(image).shape == (9, 9, 3)


def test_flip(image):
    horizontal = T.RandomFlip(prob=1.0).get_transform(image)
    np.testing.assert_array_equal(horizontal.apply_image(image), image[:, ::-1])
    np.testing.assert_allclose(horizontal.apply_box(np.array([[2.0, 3.0, 6.0, 9.0]])), [[24, 3, 28, 9]])
    vertical = T.RandomFlip(prob=1.0, horizontal=False, vertical=True).get_transform(image)
    np.testing.assert_array_equal(vertical.apply_image(image), image[::-1])
    np.testing.assert_allclose(vertical.apply_box(np.array([[2.0, 3.0, 6.0, 9.0]])), [[2, 11, 6, 17]])


def test_flip_keeps_its_probability(image):
    flip = T.RandomFlip(prob=0.25)
    flipped = sum(isinstance(flip.get_transform(image), T.HFlipTransform) for _ in range(1000))
    assert 190 < flipped < 310
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=True, vertical=True)
    with pytest.raises(ValueError):
        T.RandomFlip(horizontal=False, vertical=False)


@pytest.mark.parametrize(
    "kind, size, heights, widths",
    [
        ("absolute", (8, 50), {8}, {30}),
        ("relative", (0.5, 0.1), {10}, {3}),
        ("relative_range", (0.9, 0.9), {18, 19, 20}, {27, 28, 29, 30}),
        ("absolute_range", (18, 25), {18, 19, 20}, set(range(18, 26))),
    ],
)
def test_random_crop(image, kind, size, heights, widths):
    crop = T.RandomCrop(kind, size)
    drawn = [crop.get_transform(image) for _ in range(300)]
    assert {t.h for t in drawn} == heights and {t.w for t in drawn} == widths
    for transform in drawn:
        assert 0 <= transform.x0 <= 30 - transform.w and 0 <= transform.y0 <= 20 - transform.h
    cropped = drawn[0].apply_image(image)
    np.testing.assert_array_equal(cropped, image[drawn[0].y0 :, drawn[0].x0 :][: drawn[0].h, : drawn[0].w])


def test_resize_scale_and_fixed_size_crop(image):
    for scale, shape in ((0.5, (13, 20)), (2.0, (53, 80))):
        transform = T.ResizeScale(scale, scale, 60, 40).get_transform(image)
        assert transform.apply_image(image).shape[:2] == shape
    padded = T.FixedSizeCrop((25, 24), pad_value=7).get_transform(image)
    result = padded.apply_image(image)
    assert result.shape == (25, 24, 3) and (result[20:] == 7).all()
    x0 = -int(padded.apply_coords(np.array([[0.0, 0.0]]))[0, 0])
    np.testing.assert_array_equal(result[:20], image[:, x0 : x0 + 24])
    labels = padded.apply_segmentation(np.zeros((20, 30), dtype=np.uint8))
    assert (labels[20:] == 255).all() and (labels[:20] == 0).all()
    smaller = T.FixedSizeCrop((25, 24), pad=False).get_transform(image).apply_image(image)
    assert smaller.shape == (20, 24, 3)


@pytest.mark.parametrize("expand", [True, False])
def test_rotation_moves_pixels_and_points_alike(expand):
    for angle in (90, -90, 180, 30):
        transform = T.RotationTransform(20, 30, angle, expand=expand)
        big = np.zeros((20, 30), dtype=np.uint8)
        big[8:11, 12:16] = 1
        y, x = np.nonzero(transform.apply_segmentation(big))
        center = transform.apply_coords(np.array([[14.0, 9.5]]))[0]
        np.testing.assert_allclose([x.mean() + 0.5, y.mean() + 0.5], center, atol=0.6)


def test_rotation_by_a_quarter_turn(image):
    transform = T.RotationTransform(20, 30, 90)
    np.testing.assert_array_equal(transform.apply_image(image), np.rot90(image))
    np.testing.assert_allclose(
        transform.apply_coords(np.array([[0.0, 0.0], [30.0, 20.0]])), [[0, 30], [20, 0]], atol=1e-9
    )
    back = transform.inverse()
    np.testing.assert_array_equal(back.apply_image(transform.apply_image(image)), image)
    with pytest.raises(NotImplementedError):
        T.RotationTransform(20, 30, 90, expand=False).inverse()


def test_random_rotation(image):
    angles = {T.RandomRotation([10, 350], sample_style="choice").get_transform(image).angle for _ in range(30)}
    assert angles == {10, 350}
    drawn = T.RandomRotation([5, 15], expand=False, center=[[0.5, 0.5], [0.5, 0.5]]).get_transform(image)
    assert 5 <= drawn.angle <= 15
    np.testing.assert_allclose(drawn.apply_coords(np.array([[15.0, 10.0]])), [[15, 10]])
    assert isinstance(T.RandomRotation(360).get_transform(image), T.NoOpTransform)


def test_colour_augmentations(image):
    def applied(augmentation, weight):
        return augmentation(weight, weight).get_transform(image).apply_image(image).astype(float)

    pixels = image.astype(float)
    luma = pixels @ [0.299, 0.587, 0.114]
    for augmentation, colourless in (
        (T.RandomBrightness, 0.0),
        (T.RandomContrast, pixels.mean()),
        (T.RandomSaturation, luma[:, :, None]),
    ):
        for weight in (0.5, 1.0, 1.5):
            expected = np.clip(colourless * (1 - weight) + pixels * weight, 0, 255)
            np.testing.assert_allclose(applied(augmentation, weight), expected, atol=1.0)
    with pytest.raises(AssertionError):
        T.RandomSaturation(0.5, 0.5).get_transform(image[:, :, :2])


def test_random_apply(image):
    flip = T.HFlipTransform(30)
    for prob, expected in ((0.0, image), (1.0, image[:, ::-1])):
        aug_input = T.AugInput(image)
        T.RandomApply(flip, prob=prob)(aug_input)
        np.testing.assert_array_equal(aug_input.image, expected)
    drawn = [T.RandomApply(T.RandomFlip(1.0), 0.5).get_transform(image) for _ in range(100)]
    assert 30 < sum(isinstance(t, T.HFlipTransform) for t in drawn) < 70


def test_list_transforms_everything_together(image, rng):
    boxes = np.array([[3.0, 4.0, 10.0, 12.0]])
    labels = one_pixel(5, 6)
    aug_input = T.AugInput(image, boxes=boxes, sem_seg=labels)
    augmentations = [T.Resize((40, 60)), T.HFlipTransform(60), T.RandomCrop("absolute", (30, 50))]
    transforms = T.AugmentationList(augmentations)(aug_input)
    assert isinstance(transforms, T.TransformList) and len(transforms) == 3
    np.testing.assert_array_equal(aug_input.image, transforms.apply_image(image))
    np.testing.assert_allclose(aug_input.boxes, transforms.apply_box(boxes))
    assert aug_input.image.shape == (30, 50, 3) and aug_input.sem_seg.shape == (30, 50)
    x0, y0 = transforms[2].x0, transforms[2].y0
    np.testing.assert_allclose(aug_input.boxes, [[40 - x0, 8 - y0, 54 - x0, 24 - y0]])
    y, x = np.nonzero(aug_input.sem_seg)
    np.testing.assert_allclose([x.mean() + 0.5, y.mean() + 0.5], transforms.apply_coords(np.array([[5.5, 6.5]]))[0])


def test_apply_augmentations(image):
    result, transforms = T.apply_augmentations([T.RandomFlip(1.0)], image)
    np.testing.assert_array_equal(result, image[:, ::-1])
    aug_input = T.StandardAugInput(image)
    returned, _ = T.apply_augmentations([T.RandomFlip(1.0)], aug_input)
    assert returned is aug_input
    np.testing.assert_array_equal(transforms.apply_image(image), aug_input.image)


class CropToFirstBox(T.Augmentation):
    """An augmentation as a user may write it."""

    def __init__(self, margin=2):
        self.margin = margin

    def get_transform(self, image, boxes):
        x1, y1, x2, y2 = boxes[0].astype(int)
        return T.CropTransform(x1, y1, x2 - x1 + self.margin, y2 - y1 + self.margin)


def test_augmentation_gets_what_its_parameters_name(image):
    aug_input = T.AugInput(image, boxes=np.array([[3.0, 4.0, 10.0, 12.0]]))
    CropToFirstBox()(aug_input)
    assert aug_input.image.shape == (10, 9, 3)
    np.testing.assert_allclose(aug_input.boxes, [[0, 0, 7, 8]])


def test_augmentation_says_what_it_misses(image):
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        NeedsDepth()(T.AugInput(image))

    class NeedsAnything(T.Augmentation):
        def get_transform(self, image, *others):
            return T.NoOpTransform()

    with pytest.raises(TypeError):
        NeedsAnything()(T.AugInput(image))


def test_augmentation_must_give_a_transform(image):
    class Wrong(T.Augmentation):
        def get_transform(self, image):
            return image

    with pytest.raises(AssertionError, match="instance of Transform"):
        Wrong()(T.AugInput(image))


def test_repr():
    assert repr(CropToFirstBox(5)) == "CropToFirstBox(margin=5)"
    assert repr(T.RandomFlip(prob=0.1)) == "RandomFlip(prob=0.1)"
    assert repr(T.AugmentationList([CropToFirstBox(3)])) == "AugmentationList[CropToFirstBox(margin=3)]"


def test_input_must_be_an_image(image):
    with pytest.raises(AssertionError):
        T.AugInput(image.tolist())
    with pytest.raises(AssertionError):
        T.AugInput(np.zeros(5, dtype=np.uint8))
