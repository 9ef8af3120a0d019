"""The daemon's own log: one line for each thing that a person should know, on standard error."""

import logging


def configure(level: str) -> None:
    """``level`` is a name that ``logging`` knows."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
