"""Text of any length: a collate function pads, and a sampler puts sentences of about one length into a batch.

Sentences are made by a little grammar; the model says whether the numbers that they name are in order.
"""

import argparse
import random
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import dmi

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=8)
args = parser.parse_args()

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WORDS = ["<pad>", "first", "then", "and", "at", "last", *NUMBERS]
PLACE = {word: place for place, word in enumerate(WORDS)}
Sentence = tuple[torch.Tensor, int]


class Sentences(Dataset[Sentence]):
    """Word numbers (length,), and whether the numbers in them never fall."""

    def __init__(self, count: int) -> None:
        chance = random.Random(3)
        self._all = [self._made(chance) for _ in range(count)]

    @staticmethod
    def _made(chance: random.Random) -> Sentence:
        numbers = [chance.randrange(10) for _ in range(chance.randint(2, 9))]
        if chance.random() < 0.5:
            numbers.sort()
        words = ["first", NUMBERS[numbers[0]]]
        for number in numbers[1:]:
            words += [*chance.choice([["then"], ["and", "then"], ["and", "at", "last"]]), NUMBERS[number]]
        is_rising = all(one <= other for one, other in pairwise(numbers))
        return torch.tensor([PLACE[word] for word in words]), int(is_rising)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, place: int) -> Sentence:
        return self._all[place]

    def length(self, place: int) -> int:
        """In words."""
        return len(self._all[place][0])


class ByLength:
    """Batches of about one length, in an order that is drawn anew for each epoch: what it draws follows the run's seed."""

    def __init__(self, sentences: Sentences, batch_size: int) -> None:
        self._sentences, self._batch_size = sentences, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        places = torch.randperm(len(self._sentences)).tolist()
        places.sort(key=self._sentences.length)
        batches = [places[start : start + self._batch_size] for start in range(0, len(places), self._batch_size)]
        random.shuffle(batches)
        return iter(batches)


def padded(sentences: list[Sentence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Words (n, longest), lengths (n,), labels (n,)."""
    words = [found for found, _ in sentences]
    return (
        pad_sequence(words, batch_first=True),
        torch.tensor([len(found) for found in words]),
        torch.tensor([label for _, label in sentences]),
    )


class Reader(nn.Module):
    """A recurrent net that looks at its state after the last word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cells, self.head = (
            nn.Embedding(len(WORDS), 16),
            nn.GRU(16, 32, batch_first=True),
            nn.Linear(32, 2),
        )

    def forward(self, words: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(n, longest), (n,) to (n, 2)."""
        states, _ = self.cells(self.words(words))
        scores: torch.Tensor = self.head(states[torch.arange(len(lengths)), lengths - 1])
        return scores


run = dmi.init(seed=0, leaves=8)
sentences = Sentences(1_200)
model = run.model(Reader())
optimizer = run.optimizer(torch.optim.Adam(model.parameters(), lr=0.01), clip_norm=1.0)
for epoch in run.epochs(args.epochs):
    for step in run.steps(sentences, sampler=ByLength(sentences, 64), collate_fn=padded):
        for words, lengths, y in step:
            loss = nn.functional.cross_entropy(model(words, lengths), y)
            loss.backward()
            run.report(loss=loss)
        optimizer.step()
    if run.is_lead:
        print(f"epoch {epoch} loss {run.mean('loss'):.4f}", flush=True)
    run.checkpoint()
