"""The document of the wire says what the messages are."""

from pathlib import Path

from dmi_protocol.describe import document


def test_the_document_is_up_to_date() -> None:
    path = Path(__file__).resolve().parents[2] / "docs" / "wire.md"
    assert path.read_text() == document(), "python -m dmi_protocol.describe > docs/wire.md"
