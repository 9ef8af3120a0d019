"""A run in a notebook: ``dmi.init`` twice in one kernel works, and gives the same weights."""

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TRAIN = """
import torch, dmi
from torch import nn
from torch.utils.data import TensorDataset
def train(seed):
    run = dmi.init(seed=seed, leaves=4)
    model = run.model(nn.Linear(2, 1))
    optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=0.1))
    data = TensorDataset(torch.arange(32.).view(16, 2) / 32, torch.ones(16, 1))
    for epoch in run.epochs(2):
        for step in run.steps(data, batch_size=8):
            for x, y in step:
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                run.report(loss=loss)
            optimizer.step()
    return model.weight.detach().clone(), run.mean("loss")
"""
COMPARE = """
(first, loss), (second, _), (third, _) = train(0), train(0), train(1)
print(torch.equal(first, second), torch.equal(first, third), loss > 0)
"""


def test_it_runs_in_a_notebook() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAIN), nbformat.v4.new_code_cell(COMPARE)])
    NotebookClient(notebook, timeout=90, kernel_name="python3").execute()
    assert notebook.cells[1].outputs[0].text.strip() == "True False True"
