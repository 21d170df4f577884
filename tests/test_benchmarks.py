"""The benchmarks: arithmetic of the tables, order of the runs, memory of a known allocation, counts of operations."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[1] / "projects" / "uniperceiver_v2" / "benchmarks"


def imported(name: str):
    """A program of the benchmarks. They import each other by their names alone."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def harness():
    return imported("harness")


class Machine:
    """A clock that only work advances."""

    def __init__(self):
        self.now, self.runs = 0.0, ""

    def work(self, name: str, seconds: float):
        def run():
            self.now += seconds
            self.runs += name

        return run


@pytest.fixture
def simulated(harness, monkeypatch):
    simulated = Machine()
    monkeypatch.setattr(harness, "settings", harness.Settings(budget=4.0, clock=lambda: simulated.now))
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)  # takes long with all that other tests have imported
    return simulated


def test_the_processors_time_is_that_of_the_children_too(harness):
    before = harness.processor_time()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert harness.processor_time() - before >= 0.2


def test_ratio_of_known_times(harness, simulated):
    ours, peer = simulated.work("o", 0.1), simulated.work("p", 0.3)
    row = harness.compare("work", ours, peer, peer_name="slower work", at_least=3.1)
    assert (row.ours, row.peer, row.ratio) == (pytest.approx(100), pytest.approx(300), pytest.approx(3))
    assert row.lower == pytest.approx(3) == row.upper and row.met is False
    assert row.pairs == 10, "as many as the budget allows"
    assert simulated.runs == "opop" + 5 * "oppo", "both are warmed up, then take turns in being first"
    assert harness.compare("work", ours, peer, peer_name="slower", at_least=2.9).met is True
    row = harness.compare("work", peer, ours, peer_name="faster", at_most=3.1)
    assert row.ratio == pytest.approx(3) and row.met is True
    assert harness.compare("work", peer, ours, peer_name="faster", at_most=2.9).met is False
    assert harness.compare("work", peer, ours, peer_name="faster").met is None


def test_short_work_is_repeated_and_long_work_is_not(harness, simulated):
    row = harness.compare("short", simulated.work("o", 1e-5), simulated.work("p", 2e-5), peer_name="", at_least=1)
    assert row.pairs == 100 and row.ratio == pytest.approx(2) and row.ours == pytest.approx(0.01)
    assert simulated.runs.count("o") > 100 * 100, "a clock does not measure a few microseconds"
    simulated.runs = ""
    row = harness.compare("long", simulated.work("o", 3), simulated.work("p", 6), peer_name="", at_least=1)
    assert row.pairs == 1 and row.lower == row.ratio == row.upper == pytest.approx(2) and simulated.runs == "opopop"
    simulated.runs = ""
    harness.compare("cold", simulated.work("o", 1), simulated.work("p", 1), peer_name="", warm_up=False)
    assert simulated.runs == "op"


def test_ratio_is_of_pairs_and_not_of_medians(harness):
    row = harness.summarise("a", [1.0, 10.0, 100.0], [2.0, 20.0, 50.0], peer_name="b", at_least=1)
    assert row.ratio == 2 and (row.lower, row.upper) == (1.25, 2) and row.ours == 10_000
    row = harness.summarise("a", [1.0, 10.0, 100.0], [2.0, 20.0, 50.0], peer_name="b", at_most=1)
    assert row.ratio == 0.5 and row.met is True
    with pytest.raises(ValueError, match="two rows"):
        harness.summarise("a", [1.0], [1.0], peer_name="b", at_least=1, at_most=1)


def test_rates_and_their_shares(harness, monkeypatch):
    monkeypatch.setattr(harness, "machine_peak", lambda device, dtype: 40.0 if dtype else 10.0)
    row = harness.summarise("a", [0.5], [1.0], peer_name="b", at_least=2, flops=1e10, moved=1e9)
    assert (row.gflops, row.gflops_share, row.gbytes, row.gbytes_share) == (20, 0.5, 2, 0.2)
    assert row.markdown() == "| a | b | 500 | 1000 | 2.00 (2.00 to 2.00) | ≥ 2 | yes | 20, 50% | 2, 20% |"
    row = harness.summarise("a", [0.5], [0.4], peer_name="b", at_most=1.1, flops=1e10, dtype=torch.bfloat16)
    assert row.markdown().endswith("| 1.25 (1.25 to 1.25) | ≤ 1.1 | **no** | 20, 50% of bfloat16 |  |")
    assert row.markdown().count("|") == harness.HEADER.splitlines()[0].count("|")


@pytest.mark.parametrize(
    "flags, expected",
    [("fma avx512_bf16 sse", True), ("amx_bf16 amx_tile", True), ("asimd bf16 i8mm", True), ("avx2 avx512f", False)],
)
def test_bf16_instructions_are_those_that_linux_names(harness, monkeypatch, tmp_path, flags, expected):
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(harness, "Path", lambda _: info)
    assert harness.has_bf16_instructions("cpu") is expected
    assert harness.has_bf16_instructions("cuda:0") is True
    info.unlink()
    assert harness.has_bf16_instructions("cpu") is False


def test_profile_of_known_operations(harness, simulated, monkeypatch, capfd):
    a = torch.rand(8, 8)
    found = imported("operations").Operations.of_work(lambda: [a.mm(a), a.mm(a), torch.nn.functional.linear(a, a)])
    assert found.outermost == 3
    assert found.calls["aten::linear"] == 1 and found.calls["aten::mm"] >= 2
    assert set(found.times) == set(found.calls) and min(found.times.values()) >= 0
    assert found.heaviest(1).startswith(found.times.most_common(1)[0][0].removeprefix("aten::") + " ")

    works = simulated.work("o", 1.0), lambda: simulated.work("p", 1.0)() or a.mm(a)
    harness.compare("work", *works, peer_name="peer")
    assert "work, " not in capfd.readouterr().err
    monkeypatch.setattr(harness.settings, "profile", True)
    harness.compare("work", *works, peer_name="peer")
    ours, peer = (line for line in capfd.readouterr().err.splitlines() if line.startswith("work, "))
    assert ours == "work, ours: 0 calls; " and peer.startswith("work, peer: 1 calls; mm ")


def test_report_round_trip(harness, tmp_path):
    row = harness.summarise("a", [0.5, 0.6], [1.0, 1.1], peer_name="b", at_least=2)
    report = harness.Report({"processor": "some", "peaks": {"GB/s": 1.5}}, [row])
    report.save(tmp_path / "report.json")
    assert harness.Report.load(tmp_path / "report.json") == report


def test_memory_of_known_allocations(harness):
    row = harness.compare_memory(
        "32 MiB", lambda: torch.ones(2**23), lambda: torch.ones(2**24).sum(), peer_name="64 MiB", at_most=0.7
    )
    assert row.unit == "MiB" and row.met is True
    assert 31 < row.ours < 36 and 63 < row.peer < 68, "and no code that a fork maps anew"


def test_memory_of_work_that_fails(harness, capfd):
    with pytest.raises(RuntimeError, match="failed"):
        harness.compare_memory("nothing", lambda: 1 / 0, lambda: None, peer_name="", at_most=1)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_table_of_programs(tmp_path):
    """Each program runs in its own process. A program that fails is named, and the rows of the others are printed."""
    for name in ("bench", "harness", "operations", "peak_memory"):
        (tmp_path / f"{name}.py").write_text((BENCHMARKS / f"{name}.py").read_text())
    program = (
        '"""Sums."""\nimport harness\n\ndef rows(args):\n    assert args.quick\n'
        "    yield harness.summarise('sum', [1.0], [2.5], peer_name='other', at_least=2)\n\n"
        "harness.machine_peak = lambda device, dtype: 7.0\nharness.main(__doc__, rows)\n"
    )
    (tmp_path / "optimizer.py").write_text(program)
    (tmp_path / "criterion.py").write_text("raise SystemExit(3)\n")
    command = [sys.executable, str(tmp_path / "bench.py"), "--only", "criterion", "optimizer", "--quick"]
    done = subprocess.run([*command, "--json", str(tmp_path / "all.json")], capture_output=True, text=True)
    assert done.returncode == 1 and "failed: criterion" in done.stderr
    assert "| sum | other | 1000 | 2500 | 2.50 (2.50 to 2.50) | ≥ 2 | yes |  |  |" in done.stdout.splitlines()
    assert "7 GFLOP/s in float32" in done.stdout and '"sum"' in (tmp_path / "all.json").read_text()


@pytest.mark.parametrize(
    ("kind", "sizes", "moved"),
    [
        ("convolution", (2, 8, 6), 2 * 2 * 8 * 6**2 + 9 * 8**2),
        ("feed_forward", (10, 8, 12), 10 * 8 + 12 * 8 + 12 + 10 * 12),
        ("attention", (2, 4, 20, 32), 4 * 2 * 4 * 20 * 32),
    ],
)
def test_operations_of_the_roofline_are_torchs_count(kind, sizes, moved):
    forward, both = getattr(imported("roofline"), kind)("small", *sizes)
    for operation in (forward, both):
        # What torch counts of attention on a CPU is the products of its plain form.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            operation.run()
        assert operation.flops == counter.get_total_flops()
    assert (forward.moved, both.moved) == (4 * moved, 3 * 4 * moved)


def test_memory_that_was_freed_before_and_is_used_again_counts():
    own_memory = imported("peak_memory").own_memory
    blocks = [torch.ones(2**18) for _ in range(64)]  # of 1 MiB
    del blocks[0]  # from here on the allocator keeps blocks of this size, and does not map each by itself
    blocks += [torch.ones(2**18) for _ in range(64)]
    del blocks[:-1]  # the last one lies behind the others, so that they do not go back by themselves
    before = own_memory()
    again = [torch.ones(2**18) for _ in range(63)]
    assert 60 < (own_memory() - before) / 2**20 < 66
    del again
