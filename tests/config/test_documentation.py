"""The tables of task settings in the documentation are those of the code."""

import pytest

from uniperceiver_v2.config.documentation import task_settings_tables, with_tables
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.kinds import KINDS

DOCUMENT = REPOSITORY / "projects/uniperceiver_v2/README.md"


def test_the_documents_tables_are_todays():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_tables(document) == document, f"python -m uniperceiver_v2.config.documentation {DOCUMENT}"


def test_every_setting_of_every_kind_has_a_row_with_default_range_and_meaning():
    tables = task_settings_tables()
    for kind in KINDS.values():
        for key in kind.settings.defaults(kind.name):
            assert f"| `{key}` |" in tables
    assert "| `MASKED_SHARE` | `0.15` | above 0 and at most 1 |" in tables
    assert '| `PROMPT` | `"{}"` |  | text' in tables
    assert "| `CROP_SCALE` | `[0.08, 1.0]` |" in tables


def test_a_document_without_a_place_is_refused():
    with pytest.raises(ValueError, match="task settings"):
        with_tables("# Settings\n")
