"""The zoo's model finds digits of handwriting, and its directory holds what its card says."""

import json
import re
import statistics

import pytest
import torch
import yaml
from detectron2.structures import Boxes, pairwise_iou

from uniperceiver_v2 import Predictor
from uniperceiver_v2.data import load_dataset, register_digit_scenes
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.predictor import MODEL_ZOO

LARGEST = 16 * 2**20  # bytes of weights
# Rows of the model zoo's table: by dataset and metric, where the figures lie in results.json below the dataset.
BOXES, MASKS = "bbox/{}", "segm/{}"
TRUTH, ANOTHERS = "caption_truth/{}", "caption_truth (another scene)/{}"
ROWS = {
    ("digit_scenes_test", "box AP"): (BOXES, "AP"),
    ("digit_scenes_test", "box AP50 / AP75"): (BOXES, "AP50", "AP75"),
    ("digit_scenes_test", "mask AP"): (MASKS, "AP"),
    ("digit_scenes_test", "mask AP50 / AP75"): (MASKS, "AP50", "AP75"),
    ("digit_scenes_lvis_test", "box AP"): (BOXES, "AP"),
    ("digit_scenes_lvis_test", "box APr / APc / APf"): (BOXES, "APr", "APc", "APf"),
    ("digit_scenes_lvis_test", "mask AP"): (MASKS, "AP"),
    ("digit_scenes_lvis_test", "mask APr / APc / APf"): (MASKS, "APr", "APc", "APf"),
    ("digits_test", "top-1 / top-5"): ("classification/{}", "top1", "top5"),
    ("digit_scenes_captions_test", "BLEU-1 / BLEU-4"): ("caption/{}", "Bleu_1", "Bleu_4"),
    ("digit_scenes_captions_test", "METEOR / ROUGE-L"): ("caption/{}", "METEOR", "ROUGE_L"),
    ("digit_scenes_captions_test", "CIDEr"): ("caption/{}", "CIDEr"),
    ("digit_scenes_captions_test", "captions wholly true (of another scene)"): (
        "{}",
        TRUTH.format("true"),
        ANOTHERS.format("true"),
    ),
    ("digit_scenes_captions_test", "digits / colours named that are in the scene"): (TRUTH, "digits", "colours"),
    ("digit_scenes_captions_test", "digits / colours in another scene"): (ANOTHERS, "digits", "colours"),
    ("digit_scenes_captions_test", "counts / places / relations that are true"): (
        TRUTH,
        *("counts", "places", "relations"),
    ),
    ("digit_scenes_retrieval_test", "text R@1 / R@5 / R@10"): ("text_retrieval/{}", "R@1", "R@5", "R@10"),
    ("digit_scenes_retrieval_test", "image R@1 / R@5 / R@10"): ("image_retrieval/{}", "R@1", "R@5", "R@10"),
    ("digit_corpus_test", "accuracy of masked words"): ("language_modelling/{}", "accuracy"),
    ("digit_corpus_test", "perplexity of masked words"): ("language_modelling/{}", "perplexity"),
    ("digit_scenes_phrases_test", "phrases found at IoU 0.5 / R@5 / R@10"): (
        "grounding/{}",
        *("Acc@0.5", "R@5@0.5", "R@10@0.5"),
    ),
}


def figure(results: dict, path: str) -> str:
    """Of results.json, as the documents print it."""
    return _printed([value(results, path)], path)


def value(results: dict, path: str) -> float | None:
    for key in path.split("/"):
        results = results[key]
    return results


def mean_of_seeds(runs: list[dict], path: str) -> str:
    """Of the results of several seeds, as the documents print it."""
    return _printed([value(run, path) for run in runs], path)


def _printed(values: list[float | None], path: str) -> str:
    """The mean and, of several values, their standard deviation. Some have no value for captions that name nothing."""
    there = [x for x in values if x is not None]
    places = 2 if path.endswith("perplexity") else 1
    if not there:
        return "-"
    mean = f"{statistics.mean(there):.{places}f}"
    if len(there) < len(values):
        return f"{mean} ({len(there)} of {len(values)} seeds)"
    return f"{mean} ± {statistics.stdev(there):.{places}f}" if len(there) > 1 else mean


def runs_of_make_train() -> list[dict]:
    """The results of `make train`, seeds 0, 1 and 2."""
    folder = REPOSITORY / "projects/uniperceiver_v2/experiments/records/make_train/test"
    return [json.loads((folder / str(seed) / "run.json").read_text())["results"] for seed in range(3)]


def words(path: str) -> str:
    """A document without its line breaks."""
    return " ".join((REPOSITORY / path).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("name", MODEL_ZOO)
def test_a_directory_of_the_zoo_is_complete(name):
    folder = REPOSITORY / MODEL_ZOO[name]
    assert (folder / "model.safetensors").stat().st_size <= LARGEST
    assert "apache-2.0" in (folder / "README.md").read_text().lower()
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] > 6000 and (folder / "log.txt").exists() and (folder / "config.yaml").exists()


def test_documents_have_the_figures_of_the_results():
    folder = MODEL_ZOO["digit_scenes/small"]
    results = json.loads((REPOSITORY / folder / "results.json").read_text())
    its = {
        "boxes": figure(results, "digit_scenes_test/bbox/AP"),
        "masks": figure(results, "digit_scenes_test/segm/AP"),
        "top1": figure(results, "digits_test/classification/top1"),
        "true": figure(results, "digit_scenes_captions_test/caption_truth/true"),
        "cider": figure(results, "digit_scenes_captions_test/caption/CIDEr"),
        "text": figure(results, "digit_scenes_retrieval_test/text_retrieval/R@1"),
        "image": figure(results, "digit_scenes_retrieval_test/image_retrieval/R@1"),
        "masked": figure(results, "digit_corpus_test/language_modelling/accuracy"),
        "phrases": figure(results, "digit_scenes_phrases_test/grounding/Acc@0.5"),
    }
    card = (
        "box / mask AP {boxes} / {masks}, digit top-1 {top1}%, captions wholly true of their scene {true}%, CIDEr "
        "{cider}, text / image R@1 {text} / {image}, masked words {masked}%, phrases found {phrases}%."
    )
    assert card.format(**its) in words(f"{folder}/README.md")
    readme = (
        "box / mask AP {boxes} / {masks}, digit top-1 {top1}%, captions wholly true in {true}%, none of which names a "
        "place, text / image R@1 {text} / {image}, {masked}% of masked words and {phrases}% of phrases."
    )
    assert readme.format(**its) in words("README.md")
    assert results["digit_scenes_captions_test"]["caption_truth"]["places"] is None


def test_the_readme_has_the_figures_of_make_train():
    runs, readme = runs_of_make_train(), (REPOSITORY / "README.md").read_text(encoding="utf-8")
    figures = {
        "box {}, mask {}": ("digit_scenes_test/bbox/AP", "digit_scenes_test/segm/AP"),
        "{}% top-1": ("digits_test/classification/top1",),
        "CIDEr {}, {}% wholly true": (
            "digit_scenes_captions_test/caption/CIDEr",
            "digit_scenes_captions_test/caption_truth/true",
        ),
        "text R@1 {}%, image R@1 {}%": (
            "digit_scenes_retrieval_test/text_retrieval/R@1",
            "digit_scenes_retrieval_test/image_retrieval/R@1",
        ),
        "{}% of masked words": ("digit_corpus_test/language_modelling/accuracy",),
        "{}% at IoU 0.5": ("digit_scenes_phrases_test/grounding/Acc@0.5",),
    }
    for form, paths in figures.items():
        assert form.format(*(mean_of_seeds(runs, path) for path in paths)) in readme


def test_the_model_zoos_table_has_the_figures_of_the_results():
    results = json.loads((REPOSITORY / MODEL_ZOO["digit_scenes/small"] / "results.json").read_text())
    runs = runs_of_make_train()
    table = (REPOSITORY / "projects/uniperceiver_v2/MODEL_ZOO.md").read_text(encoding="utf-8")
    table = table.partition("| metric | dataset | tiny | zoo | small |")[2].partition("\n\n")[0]
    dataset, seen = "", set()
    for row in table.splitlines()[2:]:
        label, named, tiny, zoo, _ = (cell.strip() for cell in row.strip("|").split("|"))
        dataset = named.strip("`") or dataset
        label = re.sub(r" \(oracle.*\)", "", label)
        if label.startswith("duplicates"):
            continue  # counted by experiments/duplicates.py
        form, *names = ROWS[dataset, label]
        paths = [form.format(name) for name in names]
        assert zoo == " / ".join(figure(results[dataset], path) for path in paths), (dataset, label)
        own = [run[dataset] for run in runs]
        assert tiny == " / ".join(mean_of_seeds(own, path) for path in paths), (dataset, label)
        seen.add((dataset, label))
    assert seen == ROWS.keys()


def test_the_zoos_scores_are_calibrated_in_both_files():
    """`config.json` is what a predictor reads, `config.yaml` what train_net reads."""
    folder = REPOSITORY / MODEL_ZOO["digit_scenes/small"]
    of_predictor = json.loads((folder / "config.json").read_text())["settings"]["TASKS"]
    of_run = yaml.safe_load((folder / "config.yaml").read_text())["TASKS"]
    predictor = Predictor.from_zoo("digit_scenes/small")
    table = (REPOSITORY / "projects/uniperceiver_v2/MODEL_ZOO.md").read_text()
    for task, kind in (("scenes", "detection"), ("digits", "classification")):
        temperature = of_run[task]["TEMPERATURE"]
        assert temperature == of_predictor[task]["TEMPERATURE"] == predictor.task(kind).settings.temperature
        assert f"| {temperature:g} |" in table
    assert of_run["scenes"]["TEMPERATURE"] < 1  # objectness is taught the quality of boxes, so it is too low


def test_the_small_model_finds_and_names_digits(prepare_digit_scenes, catalogs, tmp_path):
    prepare_digit_scenes(tmp_path / "digit_scenes", train_scenes=1, test_scenes=8)
    register_digit_scenes(str(tmp_path / "digit_scenes"), prefix="tiny_")
    predictor = Predictor.from_zoo("digit_scenes/small")
    records = [r for r in load_dataset("tiny_digit_scenes_test") if r["annotations"]]
    found, objects = 0, 0
    for record, detections in zip(records, predictor.detect([r["file_name"] for r in records]), strict=True):
        instances = detections.instances
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            x, y, w, h = annotation["bbox"]
            overlaps = pairwise_iou(Boxes(torch.tensor([[x, y, x + w, y + h]])), instances.pred_boxes)[0]
            objects += 1
            found += bool(((overlaps > 0.5) & (instances.pred_classes == annotation["category_id"])).any())
    assert objects >= 10 and found >= 0.8 * objects, (found, objects)
