"""Pictures of annotations and predictions, checked at pixels well inside and well outside of the shapes."""

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.visualizer import ColorMode, GenericMask, VisImage, Visualizer
from PIL import Image

HEIGHT, WIDTH = 80, 120
GREY = np.full((HEIGHT, WIDTH, 3), 100, dtype=np.uint8)
METADATA = Metadata(name="visualizer", thing_classes=["one", "two"], thing_colors=[(250, 0, 0), (0, 0, 250)])
SQUARE = np.array([(20.0, 20.0), (60.0, 20.0), (60.0, 60.0), (20.0, 60.0)])


def rectangle(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def blended(color, alpha):
    return 100 * (1 - alpha) + 255 * alpha * np.array(color)


def changed(picture, background=GREY):
    return (picture.astype(int) != background).any(axis=2)


def assert_color(pixel, color):
    np.testing.assert_allclose(pixel.astype(float), color, atol=2)


class TestVisImage:
    @pytest.mark.parametrize("scale", [1, 2, 0.5, 1.3])
    def test_size(self, scale):
        picture = VisImage(GREY, scale=scale).get_image()
        assert picture.shape == (int(HEIGHT * scale), int(WIDTH * scale), 3)
        assert picture.dtype == np.uint8

    def test_nothing_drawn_nothing_changed(self):
        image = np.random.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        vis = VisImage(image)
        np.testing.assert_array_equal(vis.get_image(), image)
        np.testing.assert_array_equal(VisImage(image, scale=2).get_image(), image.repeat(2, 0).repeat(2, 1))
        assert (vis.width, vis.height, vis.scale) == (WIDTH, HEIGHT, 1)

    def test_saved_is_what_is_shown(self, tmp_path):
        visualizer = Visualizer(GREY)
        vis = visualizer.draw_polygon(SQUARE, "orange", alpha=1)
        vis.save(str(tmp_path / "a.png"))
        saved = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
        assert saved.shape == GREY.shape
        np.testing.assert_allclose(saved.astype(int), vis.get_image(), atol=2)

    def test_another_image_underneath(self):
        vis = VisImage(GREY)
        vis.reset_image(GREY + 50.0)
        assert (vis.get_image() == 150).all()


class TestShapes:
    @pytest.mark.parametrize("scale", [1, 2])
    @pytest.mark.parametrize(
        ("color", "rgb"),
        [
            ("r", (1, 0, 0)),
            ("g", (0, 128 / 255, 0)),
            ("orange", (1, 165 / 255, 0)),
            ("#204080", (32 / 255, 64 / 255, 128 / 255)),
            ((0.2, 0.4, 0.6), (0.2, 0.4, 0.6)),
            (np.array([0.2, 0.4, 0.6]), (0.2, 0.4, 0.6)),
        ],
        ids=["letter", "green", "name", "hex", "tuple", "array"],
    )
    def test_polygon(self, color, rgb, scale):
        visualizer = Visualizer(GREY, scale=scale)
        picture = visualizer.draw_polygon(SQUARE, color, alpha=0.4).get_image()
        for x, y in [(26, 26), (40, 40), (54, 54), (26, 54)]:
            assert_color(picture[y * scale, x * scale], blended(rgb, 0.4))
        outside = np.ones((HEIGHT, WIDTH), dtype=bool)
        outside[16:65, 16:65] = False
        assert not changed(picture, 100)[outside.repeat(scale, 0).repeat(scale, 1)].any()

    def test_the_callers_image_is_left_alone(self):
        image = GREY.copy()
        Visualizer(image).draw_polygon(SQUARE, "r")
        np.testing.assert_array_equal(image, GREY)

    def test_polygon_edges_are_opaque_and_can_have_their_own_color(self):
        picture = Visualizer(GREY, scale=4).draw_polygon(SQUARE, "r", edge_color="b", alpha=0.2).get_image()
        assert (picture[160, 78:83] @ [-1, 0, 1]).max() > 150  # blue far above red

    def test_a_polygon_that_leaves_the_image(self):
        picture = Visualizer(GREY).draw_polygon(SQUARE - 50, "r", alpha=1).get_image()
        assert_color(picture[4, 4], (255, 0, 0))
        assert not changed(picture)[15:].any()

    def test_what_is_no_color_is_refused(self):
        with pytest.raises(ValueError, match=r"colou?r|RGB"):
            Visualizer(GREY).draw_polygon(SQUARE, "no such colour")

    def test_box(self):
        picture = Visualizer(GREY).draw_box((20, 10, 100, 70), alpha=1, edge_color="r").get_image()
        for y, x in [(10, 60), (70, 60), (40, 20), (40, 100)]:
            assert picture[y - 2 : y + 3, x - 2 : x + 3, 0].max() >= 250
        assert not changed(picture)[18:62, 28:92].any()
        assert not changed(picture)[:, :12].any()

    def test_box_of_tensors_and_its_opacity(self):
        opaque, faint = (
            Visualizer(GREY).draw_box(torch.tensor([20, 10, 100, 70]), alpha, edge_color="w").get_image()
            for alpha in (1.0, 0.3)
        )
        assert 100 < faint.max() < opaque.max()

    def test_a_dashed_box_has_gaps(self):
        solid, dashed = (
            changed(Visualizer(GREY).draw_box((20, 10, 100, 70), line_style=style).get_image()) for style in ("-", "--")
        )
        assert solid[8:13, 26:94].any(axis=0).all()
        assert 0 < dashed[8:13, 26:94].any(axis=0).mean() < 1
        with pytest.raises(ValueError, match="wavy"):
            Visualizer(GREY).draw_box((20, 10, 100, 70), line_style="wavy").get_image()

    def test_text_stands_at_its_place(self):
        for alignment, columns in [("left", (58, 120)), ("center", (30, 90)), ("right", (0, 62))]:
            picture = (
                Visualizer(GREY)
                .draw_text("mm", (60, 30), font_size=10, color="w", horizontal_alignment=alignment)
                .get_image()
            )
            ys, xs = changed(picture).nonzero()
            assert 26 <= ys.min() <= 32 and ys.max() < 55
            assert columns[0] <= xs.min() and xs.max() <= columns[1]
            assert picture.max() > 200 and picture.min() < 40  # light letters on dark ground

    def test_larger_fonts_take_more_room(self):
        areas = [
            changed(Visualizer(GREY).draw_text("abc", (60, 20), font_size=size).get_image()).sum() for size in (6, 12)
        ]
        assert areas[1] > 2 * areas[0] > 0

    def test_turned_text_is_upright(self):
        picture = Visualizer(GREY).draw_text("long text", (60, 5), font_size=8, rotation=90).get_image()
        ys, xs = changed(picture).nonzero()
        assert np.ptp(ys) > 2 * np.ptp(xs)

    def test_text_lies_above_what_is_drawn_later(self):
        visualizer = Visualizer(GREY)
        visualizer.draw_text("text", (40, 30), font_size=10, color="w")
        picture = visualizer.draw_polygon(SQUARE, "r", alpha=1).get_image()
        assert picture[25:50, 25:55].min(axis=2).max() > 200  # white letters

    def test_mask_with_a_hole(self):
        mask = rectangle(20, 10, 100, 70) - rectangle(50, 30, 70, 50)
        picture = Visualizer(GREY).draw_binary_mask(mask, "b", alpha=0.5).get_image()
        assert_color(picture[20, 35], blended((0, 0, 1), 0.5))
        assert not changed(picture)[34:46, 54:66].any()
        assert not changed(picture)[:, :16].any()

    def test_small_parts_of_a_mask_are_left_out(self):
        mask = rectangle(20, 10, 60, 50) | rectangle(90, 60, 94, 64)
        for threshold, drawn in [(100, False), (4, True)]:
            picture = Visualizer(GREY).draw_binary_mask(mask, "b", area_threshold=threshold).get_image()
            assert changed(picture)[30, 40]
            assert changed(picture)[61, 91] == drawn

    def test_text_on_a_mask(self):
        mask = rectangle(20, 10, 100, 70)
        plain, labelled = (
            Visualizer(GREY).draw_binary_mask(mask, "b", text=text).get_image() for text in (None, "name")
        )
        ys, xs = changed(labelled, plain).nonzero()
        assert 30 < ys.mean() < 60 and 50 < xs.mean() < 70

    def test_an_empty_mask(self):
        empty = rectangle(0, 0, 0, 0)
        picture = Visualizer(GREY).draw_binary_mask(empty, "b", text="name").get_image()
        np.testing.assert_array_equal(picture, GREY)


class TestGenericMask:
    bitmap = rectangle(20, 10, 60, 50)

    def rle(self):
        return coco_mask.encode(np.asfortranarray(self.bitmap))

    @pytest.mark.parametrize("kind", ["bitmap", "bool", "rle", "counts", "polygon"])
    def test_every_form_gives_the_same_bitmap(self, kind):
        given = {
            "bitmap": self.bitmap,
            "bool": self.bitmap.astype(bool),
            "rle": self.rle(),
            "counts": {"size": [HEIGHT, WIDTH], "counts": self.counts()},
            "polygon": [np.array([20.0, 10, 60, 10, 60, 50, 20, 50])],
        }[kind]
        mask = GenericMask(given, HEIGHT, WIDTH)
        np.testing.assert_array_equal(mask.mask, self.bitmap)
        assert mask.area() == 1600
        assert not mask.has_holes
        np.testing.assert_allclose(mask.bbox(), [20, 10, 60, 50], atol=1)
        assert len(mask.polygons) == 1

    def counts(self):
        """COCO's run lengths, computed column by column with plain Python."""
        pixels = self.bitmap.T.reshape(-1)
        borders = np.flatnonzero(np.diff(pixels)) + 1
        return np.diff([0, *borders, pixels.size]).tolist()

    def test_holes(self):
        ring = self.bitmap - rectangle(30, 20, 40, 30)
        mask = GenericMask(ring, HEIGHT, WIDTH)
        assert mask.has_holes
        assert len(mask.polygons) == 2

    def test_another_size_or_type_is_refused(self):
        with pytest.raises(AssertionError):
            GenericMask(self.bitmap, HEIGHT + 1, WIDTH)
        with pytest.raises(ValueError, match="GenericMask"):
            GenericMask("mask", HEIGHT, WIDTH)


def predictions(masks=True, **fields):
    boxes = Boxes([[20, 10, 70, 60], [80, 20, 110, 70]])
    instances = Instances(
        (HEIGHT, WIDTH), pred_boxes=boxes, scores=torch.tensor([0.9, 0.5]), pred_classes=torch.tensor([0, 1])
    )
    if masks:
        bitmaps = np.stack([rectangle(20, 10, 70, 60), rectangle(80, 20, 110, 70)])
        instances.pred_masks = torch.from_numpy(bitmaps).bool()
    return instances


class TestPredictions:
    def test_every_instance_is_drawn(self):
        visualizer = Visualizer(GREY, METADATA)
        output = visualizer.draw_instance_predictions(predictions())
        assert output is visualizer.get_output()
        picture = changed(output.get_image())
        assert picture[20:40, 30:60].all() and picture[30:50, 88:102].all()
        assert not picture[:, :14].any()

    def test_the_seed_decides_the_colors(self):
        pictures = []
        for seed in (1, 1, 2):
            np.random.seed(seed)
            pictures.append(Visualizer(GREY, METADATA).draw_instance_predictions(predictions()).get_image())
        np.testing.assert_array_equal(pictures[0], pictures[1])
        assert (pictures[0] != pictures[2]).any()

    def test_category_colors(self):
        visualizer = Visualizer(GREY, METADATA, instance_mode=ColorMode.SEGMENTATION)
        picture = visualizer.draw_instance_predictions(predictions(), jittering=False).get_image()
        assert_color(picture[30, 45], blended((250 / 255, 0, 0), 0.8))
        assert_color(picture[40, 95], blended((0, 0, 250 / 255), 0.8))

    def test_jitter_keeps_the_hue(self):
        visualizer = Visualizer(GREY, METADATA, instance_mode=ColorMode.SEGMENTATION)
        picture = visualizer.draw_instance_predictions(predictions()).get_image()
        assert picture[30, 45].argmax() == 0
        assert picture[40, 95].argmax() == 2

    def test_grey_outside_of_masks(self):
        image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        image[..., 0] = 90
        visualizer = Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW)
        picture = visualizer.draw_instance_predictions(predictions()).get_image()
        assert_color(picture[40, 5], (30, 30, 30))
        assert not np.allclose(picture[30, 45], (30, 30, 30), atol=5)

    def test_fields_are_optional(self):
        instances = predictions(masks=False)
        instances.remove("scores")
        picture = changed(Visualizer(GREY, METADATA).draw_instance_predictions(instances).get_image())
        assert picture.any() and not picture[45:52, 30:60].any()  # a border, no filling
        instances.remove("pred_classes")
        bare = changed(Visualizer(GREY).draw_instance_predictions(instances).get_image())
        assert 0 < bare.sum() < picture.sum()  # and no text

    def test_scores_and_names_are_written(self):
        written = []
        for classes, scores in [([0, 0], [0.9, 0.9]), ([1, 0], [0.9, 0.9]), ([0, 0], [0.8, 0.9])]:
            instances = predictions(masks=False)
            instances.pred_classes = torch.tensor(classes)
            instances.scores = torch.tensor(scores)
            np.random.seed(0)
            written.append(Visualizer(GREY, METADATA).draw_instance_predictions(instances).get_image())
        assert (written[0] != written[1]).any() and (written[0] != written[2]).any()

    def test_nothing_found(self):
        found = predictions()[torch.zeros(2, dtype=torch.bool)]
        np.testing.assert_array_equal(Visualizer(GREY, METADATA).draw_instance_predictions(found).get_image(), GREY)


class TestOverlay:
    def test_small_instances_lie_above_large_ones(self):
        visualizer = Visualizer(GREY)
        masks = [rectangle(50, 30, 70, 50), rectangle(20, 10, 100, 70)]
        picture = visualizer.overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1).get_image()
        assert_color(picture[40, 60], (255, 0, 0))
        assert_color(picture[20, 30], (0, 0, 255))

    @pytest.mark.parametrize("wrap", [BitMasks, list, torch.from_numpy])
    def test_forms_of_bitmaps(self, wrap):
        masks = wrap(np.stack([rectangle(20, 10, 60, 50)]))
        picture = Visualizer(GREY).overlay_instances(masks=masks, assigned_colors=["r"], alpha=1).get_image()
        assert_color(picture[30, 40], (255, 0, 0))

    @pytest.mark.parametrize("wrap", [PolygonMasks, list])
    def test_polygons(self, wrap):
        masks = wrap([[SQUARE.reshape(-1)]])
        picture = Visualizer(GREY).overlay_instances(masks=masks, assigned_colors=["r"], alpha=1).get_image()
        assert_color(picture[40, 40], (255, 0, 0))

    def test_label_beside_the_box(self):
        drawn = [
            Visualizer(GREY)
            .overlay_instances(boxes=Boxes([[40, 20, 60, 40]]), labels=labels, keypoints=None, assigned_colors=["r"])
            .get_image()
            for labels in (None, ["name"])
        ]
        ys, xs = changed(drawn[1], drawn[0]).nonzero()
        assert ys.min() >= 36 and xs.min() >= 36  # below the small object, from its left border on

    def test_lengths_must_agree(self):
        with pytest.raises(AssertionError):
            Visualizer(GREY).overlay_instances(boxes=np.zeros((2, 4)), labels=["one"])
        with pytest.raises(AssertionError):
            Visualizer(GREY).overlay_instances(boxes=np.zeros((2, 4)), masks=[rectangle(0, 0, 5, 5)])

    def test_nothing(self):
        picture = Visualizer(GREY).overlay_instances(boxes=np.zeros((0, 4)), labels=[]).get_image()
        np.testing.assert_array_equal(picture, GREY)


class TestDatasetDict:
    def annotation(self, **more):
        return {"bbox": [20, 10, 50, 50], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **more}

    def draw(self, *annotations, mode=ColorMode.IMAGE):
        np.random.seed(0)
        visualizer = Visualizer(GREY, METADATA, instance_mode=mode)
        return visualizer.draw_dataset_dict({"annotations": list(annotations)}).get_image()

    def test_boxes_of_any_mode(self):
        xyxy = {**self.annotation(), "bbox": [20, 10, 70, 60], "bbox_mode": BoxMode.XYXY_ABS}
        np.testing.assert_array_equal(self.draw(self.annotation()), self.draw(xyxy))
        assert not changed(self.draw(xyxy))[30:38, 35:55].any()
        assert changed(self.draw(xyxy))[8:13, 45].any()

    @pytest.mark.parametrize(
        "segmentation",
        [
            [[20, 10, 70, 10, 70, 60, 20, 60]],
            coco_mask.encode(np.asfortranarray(rectangle(20, 10, 70, 60))),
        ],
        ids=["polygon", "rle"],
    )
    def test_segmentations(self, segmentation):
        picture = changed(self.draw(self.annotation(segmentation=segmentation)))
        assert picture[15:35, 30:60].all()
        assert not picture[:, :14].any()

    def test_category_colors(self):
        mask = [[20, 10, 70, 10, 70, 60, 20, 60]]
        picture = self.draw(self.annotation(segmentation=mask), mode=ColorMode.SEGMENTATION)
        assert picture[30, 45].argmax() == 2

    def test_crowds_are_marked(self):
        plain, crowd = self.draw(self.annotation(iscrowd=0)), self.draw(self.annotation(iscrowd=1))
        assert changed(crowd).sum() > changed(plain).sum()

    def test_without_annotations(self):
        np.testing.assert_array_equal(self.draw(), GREY)
        picture = Visualizer(GREY, METADATA).draw_dataset_dict({"file_name": "a.png"}).get_image()
        np.testing.assert_array_equal(picture, GREY)
