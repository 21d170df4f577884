"""The study of ablations: what its variants replace, how its runs are set up and shared out, and its arithmetic."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.decoder import IMAGE_TO_TEXT
from uniperceiver_v2.tasks import RetrievalTask

PROGRAM = Path(__file__).parents[1] / "projects" / "uniperceiver_v2" / "benchmarks" / "ablations.py"


@pytest.fixture
def ablations(monkeypatch, tmp_path):
    """The program as a module, its runs in a folder of their own."""
    spec = importlib.util.spec_from_file_location("ablations", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablations", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUTPUT", tmp_path)
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


def test_every_variant_has_settings_that_hold(ablations):
    for name in ablations.VARIANTS:
        cfg = ablations.configuration(name, seed=3, iterations=800)
        assert cfg.SEED == 3
        assert list(cfg.TASKS.NAMES) == list(ablations.VARIANTS[name].tasks)
    assert ablations.configuration("whole", 0, 800).SOLVER.MAX_ITER == 800
    singles = [ablations.configuration(f"single {task}", 0, 800).SOLVER for task in ablations.TESTS]
    assert sum(solver.MAX_ITER for solver in singles) == 800
    whole = ablations.load_config(str(ablations.CONFIG)).SOLVER
    for solver in singles:
        assert abs(solver.DECODER_DELAY / solver.MAX_ITER - whole.DECODER_DELAY / 800) < 0.01
        (step,) = solver.STEPS
        assert abs(step / solver.MAX_ITER - whole.STEPS[0] / whole.MAX_ITER) < 0.01


def test_mixed_sampling_sees_as_many_samples_of_each_task(ablations):
    mixed, whole = (ablations.configuration(name, 0, 800) for name in ("mixed", "whole"))
    for task in ablations.TESTS:
        wanted = whole.TASKS[task].IMS_PER_BATCH * whole.TASKS[task].SAMPLING_RATIO
        assert abs(mixed.TASKS[task].IMS_PER_BATCH - wanted) < 0.5


def leave_run(ablations, name: str, seed: int, value: float, iterations: int = 800) -> None:
    results = {
        dataset: {
            "bbox": {"AP": value},
            "segm": {"AP": value},
            "classification": {"top1": value},
            "text_retrieval": {"R@10": value},
            "image_retrieval": {"R@10": value},
            "caption": {"Bleu_4": value, "CIDEr": value},
            "language_modelling": {"accuracy": value},
        }
        for dataset in ablations.TESTS.values()
    }
    folder = ablations.folder_of(name, seed)
    folder.mkdir()
    (folder / "ablation.json").write_text(json.dumps({"iterations": iterations, "results": results}))


def test_table_gives_means_and_spreads_of_the_runs_that_are_there(ablations):
    leave_run(ablations, "whole", 0, 10.0)
    leave_run(ablations, "whole", 1, 13.0)
    leave_run(ablations, "single digits", 0, 7.0)
    rows = ablations.markdown(seeds=3, iterations=800).splitlines()
    assert "| all tasks, Conditional MoE | 2 |" + " 11.5 ± 2.1 |" * 8 in rows
    assert "| single task | 1 | - | - | 7.0 | - | - | - | - | - |" in rows
    assert "| mixed |  |" + " - |" * 8 in rows
    assert len({row.count("|") for row in rows}) == 1, "one table"


def test_runs_of_another_length_are_refused(ablations):
    leave_run(ablations, "whole", 0, 10.0, iterations=20)
    with pytest.raises(ValueError, match=r"whole_0.*20 iterations, not 800"):
        ablations.markdown(seeds=1, iterations=800)


def test_document_keeps_what_was_written_by_hand(ablations, monkeypatch, tmp_path):
    document = tmp_path / "ablations.md"
    first, last = ablations.TABLE_MARKS
    document.write_text(f"before\n{first}old\n{last}after\n")
    monkeypatch.setattr(ablations, "DOCUMENT", document)
    leave_run(ablations, "whole", 0, 10.0)
    ablations.write_document(seeds=1, iterations=800)
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "10.0" in text and "old" not in text
    assert (tmp_path / "ablations.png").stat().st_size > 10_000


def test_a_run_has_one_owner_until_it_ends(ablations, tmp_path):
    folder = tmp_path / "whole_0"
    attempt = [
        sys.executable,
        "-c",
        f"import fcntl; fcntl.flock(open({str(folder / 'claim')!r}, 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
    ]
    with ablations.claimed(folder) as ours:
        assert ours
        with ablations.claimed(folder) as again:
            assert not again
        assert subprocess.run(attempt, stderr=subprocess.DEVNULL).returncode != 0
    assert subprocess.run(attempt).returncode == 0
