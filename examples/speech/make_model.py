"""``python make_model.py vad.pt``: the voice activity detector of the package silero-vad, as a model that remembers nothing.

pip install --no-deps silero-vad
python examples/speech/make_model.py vad.pt
python examples/speech/make_windows.py speech.wav windows.npy
dmi-node models add vad vad.pt --input "x=float32[N,512]"
dmi-node infer examples/speech/infer.toml --out voice
"""

import sys
import warnings
from importlib.resources import files

import torch
from torch import Tensor, nn

RATE = 16_000


class Vad(nn.Module):
    """[N, 512] samples at 16 kHz, from -1 to 1, give [N, 1]: how likely it is that somebody speaks in each window."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.jit.load(str(files("silero_vad") / "data" / "silero_vad.jit"))

    def forward(self, x: Tensor) -> Tensor:
        """Each window for itself: what came before would depend on who computed it."""
        self.net.reset_states()
        return self.net(x, 16_000)


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    torch.jit.script(Vad().eval()).save(sys.argv[1])
