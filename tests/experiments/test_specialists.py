"""The specialists learn, are evaluated by the project's evaluators, and their runs are kept, resumed and compared."""

import gzip
import importlib.util
import json
import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import nn

from uniperceiver_v2.data import build_task_train_loader, build_test_loader
from uniperceiver_v2.evaluation import build_evaluator

NAMES = (
    "CenterNet",
    "Deformable DETR",
    "Mask2Former",
    "Mask R-CNN",
    "CenterNet of phrases",
    "ResNet",
    "VisionEncoderDecoder",
    "dual encoder",
    "RoBERTa",
)
UPSTREAM = importlib.util.find_spec("detectron2.modeling.roi_heads") is not None
INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(name == "Mask R-CNN" and not UPSTREAM, reason="upstream has it"))
    for name in NAMES
]


@pytest.fixture
def runs(imported, small_data, small_config, monkeypatch, tmp_path):
    """The program as a module, on the small data and with its own folder for runs and document."""
    module = imported("specialist_runs")
    monkeypatch.setattr(module, "CONFIG", small_config)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
    monkeypatch.setattr(module, "DOCUMENT", tmp_path / "specialists.md")
    first, last = imported("study_tables").marks_of("specialist_runs")
    module.DOCUMENT.write_text(f"before\n{first}old\n{last}after\n")
    return module


def test_specialists_are_tested_at_the_size_of_their_training_and_at_the_generalists(runs, imported, monkeypatch):
    monkeypatch.setattr(runs, "CONFIG", imported("study").TINY_CONFIG)
    run = runs.Run("CenterNet", 1.0, 1e-3, 0, None)
    cfg = run.configuration()
    assert (cfg.INPUT.MIN_SIZE_TEST,) == cfg.INPUT.MIN_SIZE_TRAIN[:1] == (96,)
    assert run.configuration(larger=True).INPUT.MIN_SIZE_TEST == 112


def test_every_specialist_is_tested_here(runs):
    assert sorted(NAMES) == sorted(runs.SPECIALISTS)


@pytest.mark.parametrize("name", INSTALLED)
def test_a_specialist_learns_a_few_samples(runs, tmp_path, name):
    run = runs.Run(name, 1.0, runs.SPECIALISTS[name].rate, 0, tmp_path)
    cfg = run.configuration()
    model = run.specialist.build(cfg).train()
    batch = next(iter(build_task_train_loader(cfg, run.specialist.task)))[:4]
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.rate)
    first = loss = model(batch)
    for _ in range(24):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.specialist.clip)
        optimizer.step()
        loss = model(batch)
        if loss < 0.7 * first:
            break
    assert loss < 0.7 * first
    # Hugging Face's detectors freeze backbones, and leave the first of two stages without a loss.
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", INSTALLED)
def test_a_run_leaves_the_results_of_the_projects_evaluator(runs, tmp_path, name):
    specialist = runs.SPECIALISTS[name]
    run = runs.Run(name, 0.01, specialist.rate, 0, tmp_path)
    runs.do(run)
    report = json.loads((run.folder / "run.json").read_text())
    assert report["split"] == "test" and report["iterations"] >= 1 and report["seconds"] == 0.01
    for _, dataset, kind, key in runs.figures_of(name):
        assert 0 <= report["results"][dataset][kind][key] <= 100 or math.isnan(report["results"][dataset][kind][key])
        if specialist.any_size:
            assert report["larger"]["results"][dataset][kind].keys() == report["results"][dataset][kind].keys()
    assert ("larger" in report) == (specialist.task in ("scenes", "scene_phrases"))
    written = {path.name for path in (run.folder / "inference" / dataset).iterdir()}
    assert written & {"predictions.json", "coco_instances_results.json"}
    lines = gzip.decompress((run.folder / "log.jsonl.gz").read_bytes()).splitlines()
    assert json.loads(lines[-1])["iteration"] == report["iterations"]
    assert not (run.folder / "checkpoint.pth").exists()


def test_a_run_that_was_killed_goes_on_and_a_finished_one_is_not_repeated(runs, tmp_path, monkeypatch):
    run = runs.Run("RoBERTa", 0.36, 1e-3, 0, tmp_path)
    assert run.iterations == 5
    monkeypatch.setattr(runs, "SAVE_PERIOD", 0.0)
    save, saved = torch.save, []

    def saving(state, file):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(state["iteration"])
        save(state, file)

    monkeypatch.setattr(torch, "save", saving)
    with pytest.raises(KeyboardInterrupt):
        runs.do(run)
    assert saved == [1, 2, 3] and not (run.folder / "run.json").exists()
    monkeypatch.setattr(torch, "save", save)
    asked = []
    load = runs.build_task_train_loader
    monkeypatch.setattr(runs, "build_task_train_loader", lambda *a: asked.append(next(iter(a[2]))) or load(*a))
    runs.do(run)
    report = json.loads((run.folder / "run.json").read_text())
    assert asked == [3], "the next batch is the one after the checkpoint's"
    assert report["iterations"] == 5, "those before count"
    log = [json.loads(line) for line in gzip.decompress((run.folder / "log.jsonl.gz").read_bytes()).splitlines()]
    assert [line["iteration"] for line in log] == [1, 2, 3, 4, 5]
    monkeypatch.setattr(runs, "train", None)
    runs.do(run)


@pytest.mark.skipif(UPSTREAM, reason="upstream has its layers")
def test_a_specialist_whose_layers_are_not_installed_is_left_out_and_refused_by_name(runs, monkeypatch, capsys):
    done = []
    monkeypatch.setattr(runs, "do", done.append)
    monkeypatch.setattr(runs, "write_document", lambda *_: None)
    runs.main(["--seeds", "1", "--seconds", "1"])
    assert [run.name for run in done] == [name for name in runs.SPECIALISTS if name != "Mask R-CNN"]
    with pytest.raises(SystemExit):
        runs.main(["--only", "Mask R-CNN"])
    assert "Mask R-CNN needs detectron2.modeling.roi_heads" in capsys.readouterr().err


def test_rate_rises_and_falls_to_nothing(runs):
    shares = [runs.rate_share(share / 100) for share in range(101)]
    assert 0 < shares[0] < 0.05 and max(shares) > 0.98 and shares[-1] == 0
    assert shares.index(max(shares)) in (4, 5, 6)


def leave_run(runs, output, name, split, seconds, rate, seed, value):
    results = {}
    for _, dataset, kind, key in runs.figures_of(name):
        results.setdefault(dataset, {}).setdefault(kind, {})[key] = value
    report = {"specialist": name, "seconds": seconds, "rate": rate, "seed": seed, "split": split}
    folder = output / split / f"{name}_{seconds:g}_{rate:g}_{seed}"
    folder.mkdir(parents=True)
    report |= {"iterations": 1000, "parameters": 2_500_000, "results": results}
    (folder / "run.json").write_text(json.dumps(report))
    return results


def test_table_has_the_runs_that_are_there_and_nothing_of_the_choosing(runs, tmp_path, monkeypatch):
    chosen = runs.SPECIALISTS["ResNet"].rate
    leave_run(runs, tmp_path, "ResNet", "test", 170, chosen, 0, 90.0)
    leave_run(runs, tmp_path, "ResNet", "test", 170, chosen, 1, 92.0)
    leave_run(runs, tmp_path, "ResNet", "test", 170, 10 * chosen, 0, 50.0)
    generalist = leave_run(runs, tmp_path, "ResNet", "development", 60, chosen, 0, 99.0)
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "results.json").write_text(json.dumps(generalist))
    monkeypatch.chdir(tmp_path)
    options = ["--output", str(tmp_path), "--generalist", "all tasks", "seed*/results.json"]
    with pytest.raises(KeyError, match="digit_scenes_test"):
        runs.main(["--table", *options])  # figures that the generalist does not have
    for name in runs.SPECIALISTS:
        generalist |= leave_run(runs, tmp_path / "others", name, "test", 170, 1.0, 0, 99.0)
    (tmp_path / "seed0" / "results.json").write_text(json.dumps(generalist))
    runs.main(["--table", *options])
    text = runs.DOCUMENT.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| specialist | figure | all tasks | specialist, 170 s |" in text
    assert "| ResNet | top-1 | 99.0 | 91.0 ± 1.4 (2 seeds) |" in text
    assert "| RoBERTa | masked words | 99.0 | - |" in text
    assert f"| ResNet | 2.5M | development | 60 | {chosen:g} | 0 | 1,000 | top-1 99.0 |" in text
    assert f"| ResNet | 2.5M | test | 170 | {10 * chosen:g} | 0 | 1,000 | top-1 50.0 |" in text
    runs.main(["--table", "--output", str(tmp_path / "others"), *options[2:]])
    assert "2.5M | test | 170 | 1 |" in (tmp_path / "others" / "specialists.md").read_text()
    assert runs.DOCUMENT.read_text() == text


def test_list_of_runs_has_the_figures_at_the_generalists_size_where_all_seeds_have_them(runs, tmp_path):
    for seed, value in enumerate((70.0, 72.0)):
        results = leave_run(runs, tmp_path, "CenterNet", "test", 170, 0.002, seed, value)
        path = tmp_path / "test" / f"CenterNet_170_0.002_{seed}" / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "larger": {"size": 112, "results": results}}))
    assert "| box AP 71.0 ± 1.4; at 112 pixels box AP 71.0 ± 1.4 |" in runs.list_of_runs(runs.reports(tmp_path))
    leave_run(runs, tmp_path, "CenterNet", "test", 170, 0.002, 2, 71.0)
    assert "| box AP 71.0 ± 1.0 |" in runs.list_of_runs(runs.reports(tmp_path))


def scene(masks: torch.Tensor, classes: list[int]) -> Instances:
    size = masks.shape[-2:]
    boxes = BitMasks(masks).get_bounding_boxes()
    return Instances(tuple(size), gt_boxes=boxes, gt_classes=torch.tensor(classes), gt_masks=BitMasks(masks))


def test_boxes_go_to_deformable_detr_and_come_back(imported, small_config, runs):
    module = imported("specialists.deformable_detr")
    instances = Instances((40, 80), gt_classes=torch.tensor([3]), gt_boxes=Boxes([[8.0, 4.0, 24.0, 36.0]]))
    torch.testing.assert_close(module.labels_of(instances)["boxes"], torch.tensor([[0.2, 0.5, 0.2, 0.8]]))
    run = runs.Run("Deformable DETR", 1, 1, 0, None)
    model = run.specialist.build(run.configuration())
    kinds = [type(module) for module in model.detr.model.backbone.modules()]
    assert nn.GroupNorm in kinds and not [kind for kind in kinds if "Frozen" in kind.__name__], "nothing is frozen"


def test_masks_of_mask2former_are_instances(imported):
    module = imported("specialists.mask2former")
    truth = torch.zeros(2, 32, 32, dtype=torch.bool)
    truth[0, 4:12, 8:16], truth[1, 16:28, 4:20] = True, True
    logits = torch.full((2, 11), -9.0)
    logits[0, 3] = logits[1, 7] = 9.0
    masks = torch.where(truth, 9.0, -9.0)[:, ::2, ::2]
    found = module.instances_of(logits, masks, (32, 32))
    assert found.pred_classes[:2].sort().values.tolist() == [3, 7] and found.scores[:2].min() > 0.9
    first = found[found.pred_classes == 3][0]
    torch.testing.assert_close(first.pred_boxes.tensor[0], torch.tensor([8.0, 4.0, 16.0, 12.0]))
    assert (first.pred_masks[0] == truth[0]).float().mean() > 0.99


def test_centres_are_found_where_the_targets_have_them(imported):
    module = imported("specialists.centernet")
    boxes = torch.tensor([[8.0, 8.0, 28.0, 36.0], [40.0, 12.0, 56.0, 30.0]])
    heat = module.gaussians(boxes, (16, 16))
    column, row = module.cells_of(boxes, (16, 16))
    assert (heat[[0, 1], row, column] == 1).all() and ((heat == 1).flatten(1).sum(1) == 1).all()
    assert (module.peaks(heat[None])[0] > 0.5).flatten(1).sum(1).tolist() == [1, 1], "a peak for each object"
    middle = 4 * (torch.stack((column, row), 1) + 0.5)
    distances = torch.ones(1, 4, 16, 16)
    for index in range(2):
        sides = torch.cat((middle[index] - boxes[index, :2], boxes[index, 2:] - middle[index]))
        distances[0, :, row[index], column[index]] = sides
    torch.testing.assert_close(module.boxes_of(distances)[0, :, row, column].T, boxes)
    right, wrong = torch.where(heat == 1, 9.0, -9.0), torch.where(heat == 1, -9.0, 9.0)
    assert module.centre_loss(right, heat) < 0.01 < 10 < module.centre_loss(wrong, heat)


@torch.no_grad()
def test_a_detector_that_knows_the_truth_has_full_marks(runs, imported, monkeypatch, tmp_path):
    """The evaluator and the form of predictions fit together: boxes in the image's own size, labels its classes."""
    module = imported("specialists.centernet")
    run = runs.Run("CenterNet of phrases", 1, 1, 0, tmp_path)
    cfg = run.configuration()
    model = run.specialist.build(cfg).eval()
    (dataset,) = run.specialist.tests
    evaluator = build_evaluator(cfg, dataset, str(tmp_path))
    evaluator.reset()
    for batch in build_test_loader(cfg, dataset):
        outputs = []
        for x in batch:
            scale = x["image"].shape[-1] / x["width"]  # the model reads smaller images than the file's
            size = (x["image"].shape[-2] // 4, x["image"].shape[-1] // 4)
            heat, boxes = torch.zeros(len(x["phrases"]), *size), torch.zeros(4, *size)
            for index, truth in enumerate(x["phrase_boxes"]):
                if len(truth):
                    box = truth[:1].float() * scale
                    column, row = module.cells_of(box, size)
                    heat[index, row, column], boxes[:, row, column] = 1.0, box.T
            outputs.append({"instances": model._instances(heat, boxes, x)})
        evaluator.process(batch, outputs)
    results = evaluator.evaluate()["grounding"]
    assert results["N-acc"] == 100
    assert results["Acc@0.5"] > 95  # two phrases may have their centres in one cell
