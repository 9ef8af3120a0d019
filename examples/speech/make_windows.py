"""``python make_windows.py SPEECH.wav WINDOWS.npy``: mono, 16 bits, 16 kHz as windows of 512 samples, [N, 512] float32."""

import sys
import wave

import numpy as np

RATE, WINDOW = 16_000, 512

with wave.open(sys.argv[1], "rb") as file:
    if (file.getnchannels(), file.getsampwidth(), file.getframerate()) != (1, 2, RATE):
        sys.exit(f"{sys.argv[1]} is not mono, 16 bits, 16 kHz: convert it first")
    samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
windows = samples[: len(samples) // WINDOW * WINDOW].reshape(-1, WINDOW).astype(np.float32) / 32_768
np.save(sys.argv[2], windows)
print(f"{len(windows)} windows of {1000 * WINDOW / RATE:g} ms in {sys.argv[2]}")
