"""The example answers as the predictor does, in a process that cannot import PyTorch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "projects" / "uniperceiver_v2" / "examples" / "ask_onnx.py"
LABELS = ["zero", "a red seven", "two", "<mask>"]
PHRASES = ["the red one", "a two"]

# A module that is None in sys.modules cannot be imported.
WITHOUT = """
import sys
for name in ("torch", "torchvision", "transformers", "detectron2", "uniperceiver_v2", "cv2", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import ask_onnx
"""
ANSWERS = """
import json
model = ask_onnx.Model(sys.argv[2])
labels, phrases, answers = json.loads(sys.argv[3]), json.loads(sys.argv[4]), []
for path in sys.argv[5:]:
    picture = model.look(ask_onnx.opened(path))
    found = model.detect(picture, labels, threshold=0)
    answers.append({
        "detect": found, "ground": model.ground(picture, phrases, threshold=0),
        "classify": model.classify(picture.image, labels), "caption": model.caption(picture, beams=3),
        "greedy": model.caption(picture, beams=1), "pixels": int(model.mask(picture, found[0]).sum()),
    })
print(json.dumps(answers))
"""


@pytest.fixture
def pictures(tmp_path) -> list[str]:
    """Three pictures: larger and smaller than the model's size, and one with EXIF's orientation."""
    paths = []
    for number, (height, width) in enumerate([(90, 130), (50, 41), (64, 100)]):
        coarse = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 2 else 1
        paths.append(str(tmp_path / f"picture {number}.png"))
        image.save(paths[-1], exif=exif)
    return paths


def run(*arguments: str, code: str = "sys.exit(ask_onnx.main(sys.argv[2:]))") -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"{WITHOUT}\n{code}", str(EXAMPLE.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_answers_are_the_predictors(deployed, pictures):
    done = run(str(deployed.directory), json.dumps(LABELS), json.dumps(PHRASES), *pictures, code=ANSWERS)
    assert done.returncode == 0, done.stderr
    predictor = deployed.predictor
    encoded = predictor.encode(pictures)
    told = zip(
        json.loads(done.stdout),
        predictor.detect(encoded, LABELS, threshold=0),
        predictor.ground(encoded, PHRASES, threshold=0),
        predictor.classify(encoded, LABELS),
        predictor.caption(encoded, beams=3),
        predictor.caption(encoded, beams=1),
        strict=True,
    )
    for ours, detections, grounding, classes, caption, greedy in told:
        for found, theirs in ((ours["detect"], detections), (ours["ground"], grounding)):
            assert len(found) == len(theirs) > 10
            assert [score for _, score, _, _ in found] == pytest.approx(theirs.scores.tolist(), abs=1e-4)
            assert {label for label, *_ in found} == {box.label for box in theirs}
        clear = [i for i, gap in enumerate(-np.diff(detections.scores)[:20]) if gap > 1e-4]  # equal ones have no order
        assert len(clear) > 5
        for place in clear[1:]:
            if place - 1 in clear:
                label, _, box, _ = ours["detect"][place]
                assert label == detections.labels[detections.class_ids[place]]
                assert box == pytest.approx(detections.boxes[place].tolist(), abs=1e-3)
        assert list(ours["classify"].values()) == pytest.approx(classes.probabilities.tolist(), abs=1e-4)
        for (text, log_likelihood), theirs in ((ours["caption"], caption), (ours["greedy"], greedy)):
            assert text == theirs.text and log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-3)


def test_masks_are_the_predictors(deployed, pictures):
    done = run(str(deployed.directory), json.dumps(LABELS), json.dumps(PHRASES), *pictures, code=ANSWERS)
    predictor = deployed.predictor
    for ours, detections in zip(json.loads(done.stdout), predictor.detect(pictures, LABELS, threshold=0), strict=True):
        pixels = int(detections.instances.pred_masks[0].sum())
        assert ours["pixels"] == pytest.approx(pixels, rel=0.05, abs=40)  # pillow filters where it reduces


def test_the_program(deployed, pictures, tmp_path):
    missing = str(tmp_path / "missing.png")
    arguments = ["--labels", "zero, a red seven", "--tasks", "detect,classify,caption", "--confidence-threshold", "0"]
    done = run(str(deployed.directory), pictures[0], missing, *arguments, "--output", str(tmp_path / "drawn"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith(f"{pictures[0]}: a red seven 0.") for line in lines)
    assert any("%" in line and "zero" in line and "a red seven" in line for line in lines)
    assert any("log-likelihood" in line for line in lines) and any(missing in x and "skipped" in x for x in lines)
    with Image.open(tmp_path / "drawn" / "picture 0.png") as drawn:
        assert drawn.size == (130, 90)


def test_the_program_without_a_model(pictures, tmp_path):
    done = run(str(tmp_path), pictures[0])
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
