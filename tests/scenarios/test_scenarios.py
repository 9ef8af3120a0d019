"""Every story is replayed and compared. ``DMI_REWRITE_STORIES=1`` writes what came of it: review that as a diff."""

import os
from pathlib import Path

import pytest

from tests.scenarios.stories import replay

STORIES = sorted(Path(__file__).parent.rglob("*.txt"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_is_told_as_before(path: Path) -> None:
    text, told = replay(path)
    if os.environ.get("DMI_REWRITE_STORIES") == "1":
        path.write_text(told)
    else:
        assert told == text


def test_there_are_stories() -> None:
    assert len(STORIES) >= 10
