"""Words for people."""


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 thread``, ``2 threads``, ``1,000 classes``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def in_brackets(name: str, *parts: object) -> str:
    """The `repr` of a class by that name, ``Name(one thing, another)``, without the parts that are empty, None or 0."""
    return f"{name}({', '.join(str(part) for part in parts if part)})"
