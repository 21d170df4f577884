"""The study of ablations: the replacements of its arms, the settings of its runs, and its table."""

import contextlib
import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import flat_settings, load_config
from uniperceiver_v2.modeling.decoder import IMAGE_TO_TEXT
from uniperceiver_v2.tasks import RetrievalTask


@pytest.fixture
def ablations(imported, monkeypatch, tmp_path):
    """The program as a module, with its own folder for runs and document."""
    module = imported("ablations")
    monkeypatch.setattr(module.STUDY, "output", tmp_path)
    monkeypatch.setattr(module.STUDY, "split", "test")
    monkeypatch.setattr(module.STUDY, "document", tmp_path / "ablations.md")
    first, last = imported("study_tables").marks_of("ablations")
    module.STUDY.document.write_text(f"before\n{first}old\n{last}after\n")
    return module


def encode(model):
    return model.image_encoder(ImageList.from_tensors([torch.randn(3, 64, 64)], 32))[0]


@pytest.mark.parametrize(("kept", "hidden"), [(0, "proposal_tokens"), (1, "global_tokens")])
@torch.no_grad()
def test_one_kind_of_image_tokens_is_seen_by_none(ablations, tiny_model, kept, hidden):
    encoding = encode(tiny_model)
    other = encode(tiny_model)
    whole = tiny_model.decode_image(encoding)
    with ablations.only_segment(kept):
        alone = tiny_model.decode_image(encoding)
        setattr(encoding, hidden, getattr(other, hidden))
        torch.testing.assert_close(tiny_model.decode_image(encoding), alone, rtol=0, atol=0)
    assert not torch.allclose(whole, alone)
    assert not torch.allclose(tiny_model.decode_image(encoding), alone)
    assert len(tiny_model.image_segments(encoding, IMAGE_TO_TEXT)) == 2


def test_without_gathering_each_part_of_the_batch_is_contrasted_alone(ablations, tiny_model):
    inputs = [
        {
            "image": torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8),
            "caption_token_ids": [torch.tensor([0, 300 + i, 2])],
            "file_name": str(i),
        }
        for i in range(8)
    ]
    task = RetrievalTask(tiny_model.tasks["retrieval"].settings)
    with torch.no_grad(), EventStorage():
        whole = task.losses(tiny_model, inputs)["loss_contrastive"]
        parts = [task.losses(tiny_model, inputs[rank :: ablations.RANKS])["loss_contrastive"] for rank in range(4)]
        with ablations.features_not_gathered():
            separate = task.losses(tiny_model, inputs)["loss_contrastive"]
    torch.testing.assert_close(separate, torch.stack(parts).mean())
    assert not torch.isclose(separate, whole)


def test_every_arm_has_settings_that_hold(ablations, imported):
    configuration = ablations.STUDY.configuration
    for name, arm in ablations.ARMS.items():
        cfg = configuration(name, seed=3, iterations=800)
        assert cfg.SEED == 3
        assert list(cfg.TASKS.NAMES) == list(arm.tasks or ablations.TESTS)
    assert configuration("whole", 0, 800).SOLVER.MAX_ITER == 800
    singles = [configuration(name, 0, 800).SOLVER for name in ablations.ALONE]
    assert sum(solver.MAX_ITER for solver in singles) == 800
    whole = load_config(str(imported("study").CONFIG)).SOLVER
    for solver in singles:
        (step,) = solver.STEPS
        assert abs(step / solver.MAX_ITER - whole.STEPS[0] / whole.MAX_ITER) < 0.01


def test_every_arm_is_another_training(ablations, changed_settings):
    whole = ablations.STUDY.configuration("whole", 0, 700)
    for name, arm in list(ablations.ARMS.items())[1:]:
        cfg = ablations.STUDY.configuration(name, 0, 700)
        changed = changed_settings(whole, cfg)
        own, usual = flat_settings(cfg), flat_settings(whole)
        assert {key: own[key] for key in arm.settings} == arm.settings, name
        assert changed >= {key for key, value in arm.settings.items() if usual[key] != value}, name
        assert ("TASKS.NAMES" in changed) == bool(arm.tasks)
        assert changed or arm.replaced is not contextlib.nullcontext, name


def test_groups_see_as_many_samples_in_two_halves(ablations):
    groups, whole = (ablations.STUDY.configuration(name, 0, 800) for name in ("groups", "whole"))
    assert groups.SOLVER.MAX_ITER == whole.SOLVER.MAX_ITER and groups.SOLVER.TASK_GROUPS == 2
    for task in ablations.TESTS:
        assert 2 * groups.TASKS[task].IMS_PER_BATCH == whole.TASKS[task].IMS_PER_BATCH


def test_without_shares_the_optimizer_takes_each_task_alike(ablations, tiny_model):
    cfg = ablations.STUDY.configuration("no shares", 0, 800)
    build = ablations.solver_build.build_optimizer
    with ablations.ARMS["no shares"].replaced():
        changed = build(cfg, tiny_model)
    assert {share for share, _ in changed.tasks.values()} == {1.0}
    assert {share for share, _ in build(cfg, tiny_model).tasks.values()} != {1.0}


def test_rates_are_chosen_on_the_development_tree_alone(ablations, monkeypatch):
    started = []
    monkeypatch.setattr(
        ablations.STUDY.__class__, "train_in_process", lambda self, *run: started.append(run[0]) or True
    )
    options = ["--seeds", "1", "--jobs", "1", "--output", str(ablations.STUDY.output)]
    ablations.STUDY.main(options)
    on_test, started[:] = set(started), []
    monkeypatch.setattr(ablations.STUDY, "split", "development")
    ablations.STUDY.main(options)
    assert set(started) == set(ablations.ARMS)
    others = {ablations.single(task, rate) for task in ablations.TESTS for rate in ablations.RATES}
    assert set(started) - on_test == others - set(ablations.ALONE)


def test_mixed_sampling_sees_as_many_samples_of_each_task(ablations):
    mixed, whole = (ablations.STUDY.configuration(name, 0, 800) for name in ("mixed", "whole"))
    for task in ablations.TESTS:
        wanted = whole.TASKS[task].IMS_PER_BATCH * whole.TASKS[task].SAMPLING_RATIO
        assert abs(mixed.TASKS[task].IMS_PER_BATCH - wanted) < 0.5


@pytest.mark.parametrize(
    ("arm", "iterations", "tasks", "uses"),
    [
        ("global", 10, 4, "image_segments"),
        ("single scene_phrases 0.0005", 50, 1, None),
        ("mixed", 4, 6, None),
        ("unmixed", 20, 6, "losses"),
        ("groups", 10, 6, None),
    ],
)
def test_an_arm_trains_and_stands_in_the_table(
    ablations, imported, small_data, small_config, replaced, monkeypatch, tmp_path, arm, iterations, tasks, uses
):
    monkeypatch.setattr(ablations.STUDY, "output", tmp_path / "runs")
    options = ["--iterations", str(iterations), "--output", str(tmp_path / "runs")]
    ablations.STUDY.main([*options, "--run", arm, "0"])
    (folder,) = (tmp_path / "runs" / "test").iterdir()
    report = json.loads((folder / "run.json").read_text())
    assert len(report["results"]) == tasks and report["split"] == "test"
    (line,) = imported("run_records").log_of(folder)
    assert {key.split("/")[0] for key in line} - {"iteration"} <= set(ablations.TESTS) and len(line) > tasks / 3
    assert not list(folder.glob("model_*.pth")), "a finished run needs no checkpoint"
    assert set(replaced) == ({uses} if uses else set()) and all(replaced.values())
    ablations.STUDY.main([*options, "--jobs", "0"])
    rows = [line for line in ablations.STUDY.document.read_text().splitlines() if "| test | 1 |" in line]
    assert len(rows) == (2 if arm.startswith("single") else 1), "a single task is among the rates as well"
    assert {row.count(" - ") for row in rows} == {{4: 3, 1: 8, 6: 0}[tasks]}


RESULTS = {
    "bbox": ("AP",),
    "segm": ("AP",),
    "grounding": ("Acc@0.5",),
    "classification": ("top1",),
    "text_retrieval": ("R@1",),
    "image_retrieval": ("R@1",),
    "caption": ("CIDEr",),
    "caption_truth": ("true",),
    "language_modelling": ("accuracy",),
}


def leave_run(ablations, name: str, seed: int, value: float, iterations: int = 800, split: str = "test") -> Path:
    kinds = {kind: dict.fromkeys(keys, value) for kind, keys in RESULTS.items()}
    folder = ablations.STUDY.folder_of(name, seed, iterations, split)
    folder.mkdir(parents=True)
    report = {"minutes": 30.0, "date": f"2025-03-1{seed}", "results": dict.fromkeys(ablations.TESTS.values(), kinds)}
    (folder / "run.json").write_text(json.dumps(report))
    return folder


def test_table_gives_means_and_spreads_of_the_runs_that_are_there(ablations):
    leave_run(ablations, "whole", 0, 10.0)
    leave_run(ablations, "whole", 1, 13.0)
    leave_run(ablations, ablations.single("digits", ablations.SINGLE_RATES["digits"]), 0, 7.0)
    rows = ablations.STUDY.markdown(seeds=3, iterations=800).splitlines()
    assert "| all tasks, Conditional MoE | test | 2 |" + " 11.5 ± 2.1 |" * 9 in rows
    assert "| single task | test | 1 | - | - | - | 7.0 | - | - | - | - | - |" in rows
    assert "| mixed | test |  |" + " - |" * 9 in rows
    assert len({row.count("|") for row in rows[: rows.index("")]}) == 1, "one table"
    assert "| single task | test | - | - | - | -4.5 (p 0.33) | - | - | - | - | - |" in rows
    assert (
        "3 runs with --iterations 800 and seed 0, 1, finished 2025-03-10 to 2025-03-11; 1.5 hours of training together."
        in rows
    )


def test_runs_of_another_length_stand_apart(ablations):
    leave_run(ablations, "whole", 0, 10.0, iterations=20)
    assert ablations.STUDY.markdown(seeds=1, iterations=800).endswith("No run is finished.\n")
    assert "| + TBGN | test | 1 |" + " 10.0 |" * 9 in ablations.STUDY.markdown(seeds=1, iterations=20)


def test_each_split_has_its_own_rows(ablations):
    leave_run(ablations, "whole", 0, 10.0)
    leave_run(ablations, "whole", 0, 20.0, split="development")
    rows = ablations.STUDY.markdown(seeds=1, iterations=800).splitlines()
    place = rows.index("| + TBGN | test | 1 |" + " 10.0 |" * 9)
    assert rows[place + 1] == "| + TBGN | development | 1 |" + " 20.0 |" * 9


def test_rows_are_compared_with_the_whole_model_over_the_seeds_of_both(ablations):
    for seed, (dense, mixed) in enumerate([(4.0, 12.0), (3.9, 7.0), (4.1, 11.0)]):
        leave_run(ablations, "whole", seed, 10.0 + seed / 10)
        leave_run(ablations, "dense", seed, dense)
        leave_run(ablations, "mixed", seed, mixed)
    text = ablations.STUDY.markdown(seeds=3, iterations=800)
    assert "| all tasks, no MoE | test | 3 |" + " 4.0 ± 0.1 ↓ |" * 9 in text
    assert "| mixed | test | 3 |" + " 10.0 ± 2.6 |" * 9 in text
    assert "| all tasks, no MoE | test |" + " -6.1 (p 9e-05) ↓ |" * 9 in text
    assert "| mixed | test |" + " -0.1 (p 0.95) |" * 9 in text
    assert "the arm 'whole' or as named: paired, or of one seed against all of the other's." in text
    assert " 9 of 18 have p < 0.05 and an arrow; 0.9 would by chance alone." in text


def test_a_single_seed_is_compared_with_all_of_the_whole_model(ablations):
    """It lies t standard errors from their mean, where both means' variances add up. For two degrees of freedom p has a
    closed form."""
    whole, one = [10.0, 10.1, 10.4], 11.3
    for seed, value in enumerate(whole):
        leave_run(ablations, "whole", seed, value)
    leave_run(ablations, "dense", 1, one)
    mean = sum(whole) / 3
    variance = sum((value - mean) ** 2 for value in whole) / 2
    t = (one - mean) / math.sqrt(variance * (1 + 1 / 3))
    p = 1 - t / math.sqrt(2 + t**2)
    assert p < 0.05
    text = ablations.STUDY.markdown(seeds=3, iterations=800)
    assert "| all tasks, no MoE | test | 1 |" + " 11.3 ↑ |" * 9 in text
    assert "| all tasks, no MoE | test |" + f" {one - mean:+.1f} (p {p:.2g}) ↑ |" * 9 in text


def test_a_single_seed_is_not_compared_with_another(ablations):
    leave_run(ablations, "whole", 0, 10.0)
    leave_run(ablations, "dense", 0, 20.0)
    assert "t-tests" not in ablations.STUDY.markdown(seeds=1, iterations=800)


def test_arms_are_compared_with_each_other_as_named(ablations):
    for seed, (unmixed, gathered) in enumerate([(4.0, 14.0), (3.0, 13.1), (5.0, 14.9)]):
        leave_run(ablations, "unmixed", seed, unmixed)
        leave_run(ablations, "gathered", seed, gathered)
    text = ablations.STUDY.markdown(seeds=3, iterations=800)
    assert "| gathered minus unmixed | test |" + " +10.0 (p 3.3e-05) ↑ |" * 9 in text


def test_runs_that_stayed_on_a_plateau_are_marked(ablations, imported):
    learned = {plateau.scalar: 0.9 for plateau in ablations.PLATEAUS.values()}
    log = [{"iteration": 20 * n, **learned} for n in range(50)]
    keep_log = imported("run_records").keep_log
    keep_log(leave_run(ablations, "whole", 0, 10.0), log)
    keep_log(leave_run(ablations, "mixed", 0, 10.0), [{**line, "scene_pairs/pair_accuracy": 0.45} for line in log])
    keep_log(leave_run(ablations, "gathered", 0, 10.0), [{**line, "scene_pairs/pair_accuracy": 0.45} for line in log])
    text = ablations.STUDY.markdown(seeds=1, iterations=800)
    assert "| mixed | test | 1 |" + " 10.0 |" * 6 + " 10.0 † |" * 2 + " 10.0 |" in text, "a third by chance"
    assert "| + gathered features | test | 1 |" + " 10.0 |" * 9 in text
    assert "† On its plateau to the end, by arm and seed: mixed 0 (scene_pairs, test)." in text


def test_levels_of_pairs_are_those_of_the_batches(ablations):
    assert ablations.STUDY.configuration("whole", 0, 800).TASKS.scene_pairs.IMS_PER_BATCH == ablations.IMAGES
    assert ablations.chance_of_pairs(2) == pytest.approx((1 / 6 + 1 / 2) / 2)
    levels = [ablations.STUDY.plateau(name, "scene_pairs").level for name in ("whole", "unmixed", "mixed")]
    assert levels == pytest.approx([0.038, 0.156, 0.333], abs=0.001)


def test_a_plateau_is_left_at_the_end_of_training(imported):
    plateau = imported("study_tables").Plateau("digits/label_accuracy", 0.1)
    at = [{"digits/label_accuracy": accuracy} for accuracy in [0.1] * 45 + [0.27] * 5]
    beyond = [{"digits/label_accuracy": accuracy} for accuracy in [0.1] * 45 + [0.29] * 5]
    assert not plateau.is_left(at) and plateau.is_left(beyond)
    assert not plateau.is_left([{"scenes/category_accuracy": 1.0}]), "a task that was not drawn has not learned"


def test_document_keeps_what_was_written_by_hand(ablations):
    leave_run(ablations, "whole", 0, 10.0)
    ablations.STUDY.main(["--jobs", "0", "--iterations", "800", "--output", str(ablations.STUDY.output)])
    text = ablations.STUDY.document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "10.0" in text and "old" not in text and "(ablations.png)" in text
    assert ablations.STUDY.document.with_suffix(".png").stat().st_size > 10_000


def test_runs_of_another_folder_have_a_document_of_their_own(ablations, tmp_path):
    usual = ablations.STUDY.document
    before = usual.read_text()
    ablations.STUDY.main(["--jobs", "0", "--output", str(tmp_path / "trial")])
    assert "No run is finished." in (tmp_path / "trial" / usual.name).read_text()
    assert usual.read_text() == before


def test_without_runs_there_is_no_plot(ablations):
    ablations.STUDY.main(["--jobs", "0", "--output", str(ablations.STUDY.output)])
    assert "No run is finished." in ablations.STUDY.document.read_text()
    assert not ablations.STUDY.document.with_suffix(".png").exists()
