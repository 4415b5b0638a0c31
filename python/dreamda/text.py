"""Words for people."""


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 thread``, ``2 threads``, ``1,000 classes``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
