"""What a universe can find out about the code that it runs."""


class Violation(Exception):  # noqa: N818 (it is the name of a finding, not of an error)
    """``checker`` says that something happened which must never happen."""

    def __init__(self, checker: str, what: str) -> None:
        super().__init__(f"{checker}: {what}")
        self.checker = checker
        self.what = what


def demand(checker: str, truth: bool, what: str) -> None:
    """Raise ``Violation`` unless ``truth``."""
    if not truth:
        raise Violation(checker, what)
