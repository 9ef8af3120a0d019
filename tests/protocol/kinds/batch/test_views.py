"""What is shown of a batch inference."""

from dmi_protocol.messages.roles import Progressed
from dmi_protocol.view import job_view
from tests.protocol.kinds.batch.table import Table
from tests.protocol.models import batch

SPEC = batch(10, 4, replicas=2)


def test_inputs_are_counted_and_errors_are_told() -> None:
    table = Table(SPEC)
    table.settle()
    table.commit(0, 2, failed=1)
    view = job_view(table.job, table.state, table.nodes, Progressed(0, None, 80.0, None))
    assert (view.kind, view.step, view.steps, view.samples_per_second, view.loss) == ("batch", 2, 10, None, None)
    assert view.sentence == "running: 2 of 10 inputs done, 1 of them with an error; replicas on a, b"


def test_a_loss_is_told_until_it_is_made_good() -> None:
    table = Table(SPEC)
    table.settle()
    table.lose(0)
    view = job_view(table.job, table.state, table.nodes, None)
    assert view.sentence.endswith("the job goes on with replicas on b; more nodes would be used")
    table.settle()
    assert job_view(table.job, table.state, table.nodes, None).reason is None


def test_without_a_replica_it_says_from_where_it_goes_on() -> None:
    table = Table(SPEC)
    table.settle()
    table.commit(0, 0)
    table.lose(0)
    table.lose(1)
    view = job_view(table.job, table.state, table.nodes, None)
    assert view.sentence.endswith("the job goes on after 4 of 10 inputs: waiting for nodes")


def test_at_its_end_it_says_how_many_failed() -> None:
    table = Table(SPEC)
    table.settle()
    for slice_ in range(3):
        table.commit(0, slice_)
    table.settle()
    assert job_view(table.job, table.state, table.nodes, None).sentence == "succeeded: 10 inputs done"
