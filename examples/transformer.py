"""A small transformer with dropout, tied weights, AdamW, gradient clipping and a scheduler for each step.

It learns to sort the letters of short words, one letter after the other.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import TensorDataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

LETTERS, LENGTH, WIDTH, SAMPLES = 16, 8, 64, 1_000


class Sorter(nn.Module):
    """Sees a word and the sorted letters so far, and says the next one. The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS + 1, WIDTH)
        self.position = nn.Parameter(torch.randn(2 * LENGTH, WIDTH) * 0.02)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, LETTERS + 1, bias=False)
        self.output.weight = self.embedding.weight
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(2 * LENGTH), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        """Scores for the next letter: (batch, 2 * LENGTH) to (batch, 2 * LENGTH, LETTERS + 1)."""
        hidden = self.embedding(words) + self.position
        return self.output(self.encoder(hidden, mask=self.mask, is_causal=True))


run = dmi.init(seed=args.seed, leaves=8)
words = torch.randint(LETTERS, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(7))
answers = words.sort(dim=1).values
start = torch.full((SAMPLES, 1), LETTERS)
train = TensorDataset(torch.cat([words, start, answers[:, :-1]], dim=1), answers)

model = run.model(Sorter())
optimizer = run.optimizer(torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01), clip_norm=1.0)
steps = max(1, args.epochs * -(-SAMPLES // 96))
scheduler = run.scheduler(torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1))
criterion = nn.CrossEntropyLoss()

for epoch in run.epochs(args.epochs):
    for step in run.steps(train, batch_size=96):
        for sequences, targets in step:
            loss = criterion(model(sequences)[:, LENGTH:].flatten(0, 1), targets.flatten())
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
        scheduler.step()
    run.checkpoint()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)
