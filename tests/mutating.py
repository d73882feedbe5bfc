"""What is done to files to see that readers stay in control: bytes, JSON, bounds on the reader."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

MEMORY = 1 << 30  # beyond what the process has when it begins
SECONDS = 20


# What is done to the bytes of a file.


@st.composite
def edits(draw) -> Callable[[bytes], bytes]:
    place, length = draw(st.floats(0, 1)), draw(st.integers(0, 40))
    junk = draw(st.binary(max_size=20))

    def edit(content: bytes) -> bytes:
        first = int(place * len(content))
        return {
            "cut": content[:first],
            "flip": content[:first]
            + bytes(b ^ (1 << length % 8) for b in content[first : first + 1])
            + content[first + 1 :],
            "drop": content[:first] + content[first + length :],
            "put": content[:first] + junk + content[first:],
            "overwrite": content[:first] + junk + content[first + len(junk) :],
            "repeat": content[:first] + content[first : first + length] * 3 + content[first:],
            "grow": content + junk * 1000,
        }[kind]

    kind = draw(st.sampled_from(["cut", "flip", "drop", "put", "overwrite", "repeat", "grow"]))
    return edit


# What is done to JSON that has the right checksum afterwards.

ODD = [None, True, -1, 0, 3, 2**70, 1e300, "x", "../x", "os.system", [], [[]], {}, {"class": "x"}]


@st.composite
def replacements(draw) -> Callable[[object], object]:
    odd = draw(st.sampled_from(ODD))
    choices = draw(st.lists(st.integers(0, 1 << 30), min_size=12, max_size=12))
    delete = draw(st.integers(0, 5)) == 0

    def replace(content: object, depth: int = 0) -> object:
        if isinstance(content, list):
            items: list = list(enumerate(content))
        elif isinstance(content, dict):
            items = list(content.items())
        else:
            return odd
        if not items or (depth > 1 and choices[depth] % 7 == 0) or depth == len(choices) - 1:
            return odd
        key = items[choices[depth] % len(items)][0]
        if delete and choices[depth] % 3 == 0:
            kept = [(k, v) for k, v in items if k != key]
        else:
            kept = [(k, replace(v, depth + 1) if k == key else v) for k, v in items]
        return dict(kept) if isinstance(content, dict) else [v for _, v in kept]

    return replace


@contextmanager
def bounded() -> Iterator[None]:
    """Bound the memory and the time of this process."""

    def late(*_: object) -> None:
        raise TimeoutError("the reader hangs")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
