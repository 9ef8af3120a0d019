"""``docs/inference.md`` has every key, with an example that is accepted."""

import re
import tomllib

import msgspec

from dmi.infer import config
from tests.mesh.local import ROOT

DOCUMENT = (ROOT / "docs" / "inference.md").read_text()


def keys() -> set[str]:
    """As the document names them."""
    sections: dict[str, type[msgspec.Struct]] = {
        "input": config.Input,
        "preprocess": config.Preprocess,
        "output": config.Output,
    }
    found = {field.name for field in msgspec.structs.fields(config.Config)} - {"input", "output"}
    return found | {f"{name}.{f.name}" for name, kind in sections.items() for f in msgspec.structs.fields(kind)}


def test_every_key_has_a_row() -> None:
    section = ""
    named: set[str] = set()
    for line in DOCUMENT.splitlines():
        if line.startswith("| `"):
            for name in re.findall(r"`([a-z_.]+)`", line.split("|")[1]):
                section = name.partition(".")[0] if not name.startswith(".") else section
                named.add(section + name if name.startswith(".") else name)
    assert keys() <= named, keys() - named


def test_the_example_has_every_key_and_is_accepted() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    plain = tomllib.loads(text)
    config.of(plain)
    used = {
        f"{name}.{key}" if isinstance(value, dict) else name
        for name, value in plain.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    left_out = {"postprocess", "preprocess", "input.id", "input.columns"}
    assert used | left_out == keys() | {"preprocess"}
    assert all(name.rpartition(".")[2] in text for name in left_out)


def test_the_other_style_is_accepted() -> None:
    (text,) = re.findall(r"`(\{\"IMAGE\".*?\}\})`", DOCUMENT)
    plain = {**msgspec.json.decode(text), "input": {"kind": "images", "path": "in"}}
    found = config.of(plain)
    assert (found.model, found.device) == ("m.pt", "cpu")
    assert found.preprocess == config.Preprocess(resize=(224, 224))
