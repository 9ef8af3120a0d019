"""Versions of models: added once, found by name, removed when nobody uses them."""

import pytest
from msgspec.structs import replace

from dmi_protocol import limits
from dmi_protocol.cluster.apply import apply
from dmi_protocol.cluster.command import Cancel, HoldBlob, Recopy, RemoveModel, Submit
from dmi_protocol.cluster.models import find
from dmi_protocol.cluster.state import ClusterState, MemberRecord
from dmi_protocol.identity import BlobHash, JobId, NodeId, PublicKey, RequestId
from dmi_protocol.model import ModelContent, ModelFile
from dmi_protocol.reasons import LimitReached, Malformed, ModelInUse, Stale, UnknownModel
from tests.protocol.models import WEIGHTS, adding, batch, content, cutting

A, B, C = (NodeId(letter * 16) for letter in "abc")
OTHER = BlobHash("d" * 64)


def state() -> ClusterState:
    found = ClusterState("mesh")
    for node in (A, B, C):
        found.members[node] = MemberRecord(node, node[0], "h:1", PublicKey(node), witness=False)
    assert apply(found, 1, adding("m", A)).value == "m:1"
    return found


def test_the_same_bytes_are_the_same_version_and_who_has_them_is_known() -> None:
    mesh = state()
    assert apply(mesh, 2, adding("m", B, request="again")).value == "m:1"
    assert mesh.models["m"][1].nodes == {WEIGHTS: (A, B)}


def test_other_bytes_are_the_next_version_and_the_newest_is_meant() -> None:
    mesh = state()
    assert apply(mesh, 2, adding("m", A, blob=OTHER, request="other")).value == "m:2"
    assert apply(mesh, 3, adding("n", A, request="n")).value == "n:1", "under another name it is another model"
    for name, number in (("m", 2), ("m:1", 1), ("m:2", 2)):
        version = find(mesh.models, name)
        assert version is not None
        assert version.number == number
    for name in ("x", "m:3", "m:", "m:x", "m:²", ":1", ""):
        assert find(mesh.models, name) is None or name == "m:"


def test_what_was_found_out_about_a_model_makes_no_other_version() -> None:
    assert content().digest == replace(content(), inputs=(), outputs=()).digest
    assert content().digest != replace(content(), format="torchscript").digest


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "-a", "a:1", "é", "a" * (limits.NAME_CHARACTERS + 1)])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    assert isinstance(apply(state(), 2, adding(name, A, request="x")).refusal, Malformed)


@pytest.mark.parametrize(
    "files",
    [
        (),
        (ModelFile("model", WEIGHTS, 1), ModelFile("model", OTHER, 1)),
        (ModelFile("model", WEIGHTS, -1),),
        tuple(ModelFile(f"f{n}", WEIGHTS, 1) for n in range(limits.MODEL_FILES + 1)),
    ],
)
def test_files_that_make_no_model_are_refused(files: tuple[ModelFile, ...]) -> None:
    command = replace(adding("x", A), content=ModelContent("exported", files))
    assert apply(state(), 2, command).refusal == Malformed("model", "x")


def test_there_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MODEL_VERSIONS", 1)
    refusal = apply(state(), 2, adding("x", A)).refusal
    assert isinstance(refusal, LimitReached)
    assert apply(state(), 2, adding("m", B, request="again")).refusal is None


def test_a_version_that_a_job_uses_stays() -> None:
    mesh = state()
    job = apply(mesh, 2, Submit(RequestId("s"), batch(), BlobHash("b" * 64), (A,))).value
    assert apply(mesh, 3, RemoveModel(RequestId("r"), "m", 1)).refusal == ModelInUse("m:1", job)
    apply(mesh, 4, Cancel(RequestId("c"), JobId(job)))
    assert apply(mesh, 5, RemoveModel(RequestId("r2"), "m", 1)).refusal is None
    assert mesh.models == {}
    assert apply(mesh, 6, RemoveModel(RequestId("r3"), "m", None)).refusal == UnknownModel("m")


def test_one_version_of_several_is_removed() -> None:
    mesh = state()
    apply(mesh, 2, adding("m", A, blob=OTHER, request="other"))
    assert apply(mesh, 3, RemoveModel(RequestId("r"), "m", 7)).refusal == UnknownModel("m:7")
    assert apply(mesh, 4, RemoveModel(RequestId("r1"), "m", 1)).refusal is None
    assert list(mesh.models["m"]) == [2]


def test_a_file_of_a_model_is_copied_as_anything_that_must_not_be_lost() -> None:
    mesh = state()
    assert apply(mesh, 2, Recopy(RequestId("c"), "m:1", OTHER, B)).refusal == Stale()
    assert apply(mesh, 3, Recopy(RequestId("c1"), "m:1", WEIGHTS, B)).refusal is None
    assert apply(mesh, 4, HoldBlob(RequestId("h"), "m:1", WEIGHTS, C)).refusal == Stale()
    assert apply(mesh, 5, HoldBlob(RequestId("h1"), "m:1", WEIGHTS, B)).refusal is None
    assert mesh.models["m"][1].nodes == {WEIGHTS: (A, B)}
    assert ClusterState.decode(mesh.encode()).digest() == mesh.digest()


def test_a_version_may_be_cut_and_its_stages_are_kept_with_it() -> None:
    mesh = state()
    made = cutting(2, B)
    assert apply(mesh, 2, made).value == "2"
    version = mesh.models["m"][1]
    files = {file.blob for stage in made.stages for file in stage.files}
    assert version.blobs() == {WEIGHTS: (A,)} | dict.fromkeys(files, (B,))
    assert apply(mesh, 3, adding("m", C, request="again")).value == "m:1"
    assert version.blobs() == {WEIGHTS: (A, C)} | dict.fromkeys(files, (B,)), "who has the model has no stages by that"
    assert version.in_stages(6) is None
    cut = version.in_stages(7)
    assert cut is not None
    assert (cut.stages, version.is_known_as(cut), version.is_known_as(version.content)) == (made.stages, True, True)
    other = replace(cut, stages=cutting(3, B).stages)
    assert not version.is_known_as(other)


def test_of_two_cuts_into_as_many_the_more_even_one_stays() -> None:
    mesh = state()
    for place, most in enumerate((7, 5, 6)):
        assert apply(mesh, 2 + place, cutting(2, A, most=most)).refusal is None
    assert [stage.weight_bytes for stage in mesh.models["m"][1].cuts[2]] == [5, 5]


def test_what_is_no_cut_of_this_version_is_refused() -> None:
    mesh = state()
    other = cutting(2, A, blob=OTHER)
    assert apply(mesh, 2, other).refusal == UnknownModel("m:1"), "a version of that number that there was before"
    assert apply(mesh, 3, replace(cutting(2, A), request=RequestId("name"), version="m")).refusal == UnknownModel("m")
    assert apply(mesh, 4, cutting(1, A)).refusal == Malformed("stages of a model", "m:1")
    assert apply(mesh, 5, cutting(2)).refusal == Malformed("stages of a model", "m:1")
    for count in range(2, 2 + limits.MODEL_CUTS):
        assert apply(mesh, 10 + count, cutting(count, A)).refusal is None
    assert apply(mesh, 50, cutting(60, A)).refusal == LimitReached("ways to cut m:1", limits.MODEL_CUTS)
