"""SST-2: sentences and phrases of film reviews, positive or negative; texts, a word-level vocabulary, token ids."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.checks import require_count
from whence.data.examples import Examples
from whence.data.files import damaged, data_file
from whence.data.images import count_or_all
from whence.data.split import Split

CLASSES = ("negative", "positive")
PHRASES, SENTENCES, DEV = (
    ("sst2/train.tsv.gz", 67_349),
    ("sst2/train_sentences.tsv.gz", 6_920),
    ("sst2/dev.tsv.gz", 872),
)
PADDING, UNKNOWN = 0, 1  # token ids
MISSING_IN_SENTENCES = re.compile(r"[^a-z0-9,'`?!]+")


@dataclass(frozen=True)
class Texts:
    """One part of SST-2 as it is read.

    Attributes:
        texts: Lower-case, tokens apart by single spaces.
        labels: 0 negative, 1 positive; int64 (n,).
    """

    texts: tuple[str, ...]
    labels: Tensor


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: `words[k]` has id `k + 2`; 0 is padding, 1 every other word."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """The most frequent words of the texts, among equally frequent ones the first in the alphabet; `size` ids."""
        counts = Counter(word for text in texts for word in text.split())
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(tuple(ordered[: size - 2]))

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, both int64 (n, length): texts cut to `length` words, or padded at the end."""
        number = {word: k + 2 for k, word in enumerate(self.words)}
        found = [[number.get(word, UNKNOWN) for word in text.split()[:length]] for text in texts]
        ids = torch.tensor([row + [PADDING] * (length - len(row)) for row in found])
        return ids, (ids != PADDING).long()

    def decode(self, ids: Tensor) -> str:
        """The text of one row of ids (length,), for display; padding is left out, an unknown word is `[?]`."""
        return " ".join("[?]" if k == UNKNOWN else self.words[k - 2] for k in ids.tolist() if k != PADDING)


def load_sst2(
    *,
    n_train: int | None = None,
    n_test: int | None = None,
    sentences: bool = True,
    length: int = 52,
    vocabulary: int = 8192,
) -> Split:
    """6,920 train sentences (or 67,349 phrases) and the 872 sentences of the dev part, positive or negative.

    Batches are dicts of int64 tensors: "input_ids" and "attention_mask" (n, length), "labels" (n,); with the
    texts, for showing. `sst2_vocabulary` with the same options gives the words of token ids back.

    Args:
        n_train, n_test: The first rows of a part; all where None.
        sentences: Train on whole sentences, else on GLUE's phrases.
        length: Words a text is cut or padded to; none has more than 52.
        vocabulary: Largest number of token ids, padding and the unknown word among them.
    Reference:
        Socher et al. (2013), Recursive deep models for semantic compositionality over a sentiment treebank; parts as
        in GLUE, Wang et al. (2018), arXiv:1804.07461.
    """
    require_count(length, "length")
    train, test = sst2_texts(n_train=n_train, n_test=n_test, sentences=sentences)
    words = _vocabulary(train, vocabulary)

    def part(which: str, read: Texts) -> Examples:
        ids, mask = words.encode(read.texts, length)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": read.labels}
        return Examples(batch, name=f"sst2 {which}", class_names=CLASSES, texts=read.texts)

    cut = sum(len(text.split()) > length for text in train.texts)
    notes = (
        f"the first {len(train.texts)} {'sentences' if sentences else 'phrases'} and {len(test.texts)} sentences of "
        f"the dev part; {len(words)} token ids from the train part; {cut} train texts cut to {length} words"
    )
    return Split(part("train", train), part("test", test), "classification", len(CLASSES), "sst2", notes)


def sst2_vocabulary(*, n_train: int | None = None, sentences: bool = True, vocabulary: int = 8192) -> Vocabulary:
    """The vocabulary of `load_sst2` with these options, made from its train part alone."""
    return _vocabulary(sst2_texts(n_train=n_train, n_test=1, sentences=sentences)[0], vocabulary)


def sst2_texts(*, n_train: int | None = None, n_test: int | None = None, sentences: bool = True) -> tuple[Texts, Texts]:
    """Train and test texts, for a tokenizer of one's own; options as in `load_sst2`.

    In the file of train sentences all but letters a-z, digits and , ' ` ? ! was replaced by blanks; with
    `sentences=True` the test sentences are treated alike.

    Raises:
        DataError: `WHENCE_DATA` is unset, or a file is missing or damaged.
    """
    source, available = SENTENCES if sentences else PHRASES
    counts = (count_or_all("n_train", n_train, available), count_or_all("n_test", n_test, DEV[1]))
    train, test = _read(source, available), _read(*DEV)
    if sentences:
        test = Texts(tuple(as_in_sentences(text) for text in test.texts), test.labels)
    return tuple(  # type: ignore[return-value]
        Texts(part.texts[:count], part.labels[:count]) for part, count in zip((train, test), counts, strict=True)
    )


def as_in_sentences(text: str) -> str:
    """A text as the file of train sentences would hold it."""
    return MISSING_IN_SENTENCES.sub(" ", text).strip()


def _vocabulary(train: Texts, size: int) -> Vocabulary:
    require_count(size, "vocabulary", minimum=3)
    return Vocabulary.of(train.texts, size)


def _read(relative: str, n_rows: int) -> Texts:
    path = data_file(relative)
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise damaged(relative, error) from error
    if lines[0] != "sentence\tlabel":
        raise damaged(relative, f"the columns must be sentence and label; found {lines[0][:40]!r}")
    if len(lines) - 1 != n_rows:
        raise damaged(relative, f"it must have {n_rows} rows; found {len(lines) - 1}")
    rows = [line.split("\t") for line in lines[1:]]
    bad = next((k for k, row in enumerate(rows) if not _is_example(row)), None)
    if bad is not None:
        raise damaged(relative, f"data row {bad} is {lines[bad + 1][:40]!r}, not a text and a label 0 or 1")
    # Runs of blanks in the source are no tokens.
    return Texts(tuple(" ".join(text.split()) for text, _ in rows), torch.tensor([int(label) for _, label in rows]))


def _is_example(row: list[str]) -> bool:
    return len(row) == 2 and bool(row[0].strip()) and row[1] in ("0", "1")
