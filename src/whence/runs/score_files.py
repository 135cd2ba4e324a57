"""The scores of one method on disk: safetensors, top-k tables, and a manifest last.

scores.safetensors, top.parquet                  or, for methods that follow further training,
amount-20.safetensors, amount-20-top.parquet     one pair for each amount
manifest.json                                    settings, and sizes and SHA-256 of the files
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whence.runs.result_files import ResultFiles
from whence.scores import ScoreMatrix, TopK

Scores = ScoreMatrix | dict[int, ScoreMatrix]


class ScoreFiles:
    """The folder of one method's scores."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir
        self.files = ResultFiles(dir, "scores", "whence score", "These scores, the agreement and the report")

    def write(self, scores: Scores, settings: Mapping[str, Any], top: int) -> None:
        """Write everything, in the place of what is there."""
        named = {"scores": scores} if isinstance(scores, ScoreMatrix) else _by_amount(scores)
        self.files.write(settings, lambda dir: [path for stem in named for path in _pair(dir, stem, named[stem], top)])

    def read(self) -> Scores:
        """The scores, after checking every byte.

        Raises:
            StoreError: They were never finished.
            DamagedShardError: A file is damaged or gone.
        """
        matrices = {path.stem: ScoreMatrix.load(path) for path in self.files.checked() if path.suffix == ".safetensors"}
        if list(matrices) == ["scores"]:
            return matrices["scores"]
        return {int(stem.removeprefix("amount-")): matrix for stem, matrix in matrices.items()}


def last(scores: Scores) -> ScoreMatrix:
    """The matrix of the largest amount of training, or the only one."""
    return scores if isinstance(scores, ScoreMatrix) else scores[max(scores)]


def _by_amount(scores: Mapping[int, ScoreMatrix]) -> dict[str, ScoreMatrix]:
    return {f"amount-{amount}": matrix for amount, matrix in scores.items()}


def _pair(dir: Path, stem: str, matrix: ScoreMatrix, top: int) -> list[Path]:
    table = "top.parquet" if stem == "scores" else f"{stem}-top.parquet"
    return [
        matrix.save(dir / f"{stem}.safetensors", overwrite=True),
        TopK.from_blocks(matrix.blocks(), top).to_parquet(dir / table, overwrite=True),
    ]
