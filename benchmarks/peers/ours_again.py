"""whence once more, with another seed: how far a method that draws at random agrees with itself, and how far apart two
timings of the same work lie."""

from __future__ import annotations

from benchmarks.peers.ours import method_of
from benchmarks.peers.problems import Method

LIBRARY = "whence"
NOTES = {"trak": "ours with another random projection: no other tool can be expected to agree better"}
ONLY_MODULES: frozenset[str] = frozenset()
METHODS: dict[str, Method] = {
    "trak": method_of("trak", lambda settings: {"dim": settings.dim, "seed": 1}, measure="margin"),
}
