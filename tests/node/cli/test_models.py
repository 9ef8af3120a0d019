"""What `dmi-node models` prints."""

from pathlib import Path

from click.testing import CliRunner

from dmi_node.cli.main import cli
from tests.sdk.fake_node import FakeNode, refuse, value

MODEL = {
    "id": "digits:2",
    "name": "digits",
    "version": 2,
    "hash": "a" * 64,
    "format": "factory",
    "factory": "net:make",
    "size_bytes": 1_234_567,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 1, None, 8], "is_batched": True}],
    "outputs": [{"name": "a", "dtype": "int64", "shape": [2, 3], "is_batched": True}],
    "nodes": ["n0", "n1"],
    "cuts": [[600_000, 700_000]],
    "added_unix": 7,
}


def test_a_table_of_versions(tmp_path: Path) -> None:
    with FakeNode(tmp_path / "n0", models=value([MODEL])):
        done = CliRunner().invoke(cli, ["models", "--home", str(tmp_path / "n0")])
    assert done.exit_code == 0
    assert done.output.splitlines()[1].split("  ") == [
        "digits:2", "factory", "1.2 MB", "x float32[N,1,*,8]", "a int64[2,3]", "n0, n1",
    ]  # fmt: skip


def test_a_version_at_length(tmp_path: Path) -> None:
    with FakeNode(tmp_path / "n0", model=value(MODEL)):
        done = CliRunner().invoke(cli, ["models", "show", "digits", "--home", str(tmp_path / "n0")])
    assert done.output.splitlines() == [
        "digits:2  factory by net:make, 1.2 MB, aaaaaaaaaaaaaaaa",
        "  in   x float32[N,1,*,8]",
        "  out  a int64[2,3]",
        "  on   n0, n1",
        "  cut  into 2 stages of 600.0 kB, 700.0 kB",
    ]


def test_what_is_gone_is_named_and_what_is_unknown_is_told(tmp_path: Path) -> None:
    with FakeNode(tmp_path / "n0", **{"model-rm": value({"removed": ["digits:1", "digits:2"]})}):
        done = CliRunner().invoke(cli, ["models", "rm", "digits", "--home", str(tmp_path / "n0")])
    assert done.output == "removed digits:1, digits:2\n"
    with FakeNode(tmp_path / "n1", model=refuse("unknown", "no model is named 'x'")):
        done = CliRunner().invoke(cli, ["models", "show", "x", "--home", str(tmp_path / "n1")])
    assert (done.exit_code, done.output) == (1, "no model is named 'x'\n")


def test_what_is_no_model_ends_with_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no model")
    with FakeNode(tmp_path / "n0"):
        done = CliRunner().invoke(cli, ["models", "add", "m", str(tmp_path / "text"), "--home", str(tmp_path / "n0")])
    assert done.exit_code == 2
    assert done.output.startswith("text is text and no model; ")
