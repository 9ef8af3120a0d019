"""A configuration is understood whole, or refused by the key that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from dmi.errors import UsageError
from dmi.infer import config
from dmi.infer.config import Preprocess

LEAST: dict[str, Any] = {"model": "digits", "input": {"kind": "images", "path": "in"}}


def test_what_is_not_said_has_a_value() -> None:
    found = config.of(LEAST)
    assert (found.batch_size, found.device, found.output.kind, found.threads) == (32, "cpu", "jsonl", 1)
    assert found.preprocess == Preprocess()


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(LEAST | {"batch_size": 8}))
    (tmp_path / "c.toml").write_text('model = "digits"\nbatch_size = 8\n[input]\nkind = "images"\npath = "in"\n')
    assert config.read(tmp_path / "c.json") == config.read(tmp_path / "c.toml")


def test_another_style_of_keys_is_understood() -> None:
    found = config.of(
        {
            "IMAGE": {"SIZE": [224, 200]},
            "DEVICE": "cpu",
            "MODEL": {"WEIGHTS": "m.pt"},
            "INPUT": {"KIND": "images", "PATH": "in"},
        }
    )
    assert isinstance(found.preprocess, Preprocess)
    assert (found.model, found.device, found.preprocess.resize) == ("m.pt", "cpu", (224, 200))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batchsize": 8}, "no key 'batchsize'; did you mean 'batch_size'"),
        ({"input": {"kind": "images", "pfad": "in"}}, r"no key 'input\.pfad'; it knows input\.kind"),
        ({"preprocess": {"resise": 3}}, r"did you mean 'preprocess\.resize'"),
        ({"output": {"topk": 3}}, r"did you mean 'output\.top'"),
        ({"batch_size": "eight"}, "batch_size: expected `int`, got `str`"),
        ({"batch_size": 0}, "batch_size must be 1 to 65536"),
        ({"input": {"kind": "video", "path": "in"}}, r"input\.kind: invalid enum value"),
        ({"input": {"kind": "images"}}, "missing required field `path`"),
        ({"input": {"kind": "npy", "path": "x"}, "preprocess": {"resize": 3}}, "are for images"),
        ({"preprocess": "function"}, "module:function"),
        ({"preprocess": {"std": [1.0, 0.0]}}, "a zero"),
        ({"preprocess": {"resize": 0}}, "sizes of pictures"),
        ({"output": {"top": -1}}, "0 or more"),
        ({"image": {"size": [3, 3]}, "preprocess": {"resize": 3}}, r"image\.size and preprocess\.resize say the same"),
        ({"model": {"weights": "w", "name": "n"}}, r"no key 'model\.name'"),
        ({"model": ""}, "a name or a file"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        config.of(LEAST | change)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "c.toml").write_text("=")
    (tmp_path / "l.json").write_text("[]")
    for name, words in (("c.json", "is no JSON"), ("c.toml", "is no TOML"), ("l.json", "is an object"), ("x", "read")):
        with pytest.raises(UsageError, match=words):
            config.read(tmp_path / name)
