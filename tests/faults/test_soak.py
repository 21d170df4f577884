"""The soak's verdict on rows that are made up: what grows is not level."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from soak import PAGE, TRAINING, Row, judge, table

sys.path.pop(0)


def rows(program: str = TRAINING, part: int = 0, growth: float = 0.0, handles: float = 0.0, threads: float = 0.0):
    """Three hours with a row a minute: a start that takes memory, noise, and evaluations that take some for a while.

    Args:
        growth: MiB an hour. handles, threads: more of them in an hour.
    """
    chance = random.Random(part)
    return [
        Row(
            part=part,
            program=program,
            seconds=60.0 * minute,
            memory=min(1000, 500 + 20 * minute) + chance.gauss(0, 5) + 300 * (minute % 20 < 4) + growth * minute / 60,
            handles=int(50 + chance.randrange(3) + handles * minute / 60),
            threads=int(10 + threads * minute / 60),
            done=100 * minute,
        )
        for minute in range(180)
    ]


def test_a_program_that_stays_level_is_found_so():
    verdict = judge(rows() + rows(part=1))
    assert verdict.level and abs(verdict.least) < 5 and abs(verdict.most) < 5
    text, level = table(rows() + rows(part=1) + rows(PAGE))
    assert level and "| training | 5.97 | 2 | 35,800 iterations | " in text


@pytest.mark.parametrize("leak", [{"growth": 40.0}, {"handles": 2.0}, {"threads": 1.0}])
def test_a_leak_is_found(leak):
    assert not judge(rows(**leak)).level
    assert not judge(rows() + rows(part=1, **leak) + rows(part=2, **leak)).level
    text, level = table(rows() + rows(PAGE, **leak))
    assert not level and text.count("NOT LEVEL") == 1


def test_a_part_of_minutes_gives_no_verdict():
    with pytest.raises(SystemExit, match="no part has"):
        judge(rows()[:10])
