"""WikiText-2: articles of Wikipedia, cut into sequences of one length, with a word-level vocabulary."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence

from whence.checks import require_count
from whence.data.examples import Examples
from whence.data.files import damaged, data_file
from whence.data.images import count_or_all
from whence.data.split import Split
from whence.data.sst2 import Vocabulary

TRAIN, TEST = ("wikitext2/valid.txt.gz", 60), ("wikitext2/test.txt.gz", 60)  # articles
TITLE = re.compile(r"^ = [^=].*[^=] = $")
END_OF_LINE, UNKNOWN_WORD = "<eos>", "<unk>"


def load_wikitext2(
    *, n_train: int | None = None, n_test: int | None = None, length: int = 64, vocabulary: int = 4096
) -> Split:
    """Sequences of `length` words: WikiText-2's validation part to train on, its test part to ask about.

    The source's train part, ten times as large, is not read. Each article is cut from its title on, and what is left
    at its end dropped, so that no sequence belongs to two. Every line ends in `<eos>`. Batches are dicts with
    "input_ids", int64 (n, length); there is no padding, so that there is no mask. What is predicted is the next word,
    one of `n_classes`. `wikitext2_vocabulary` with the same options gives the words of token ids back.

    Args:
        n_train, n_test: The first sequences of a part; all where None.
        length: Words of a sequence, two at least.
        vocabulary: Largest number of token ids: 0 for padding, 1 for unknown words, the others for the most frequent
            words of the train part.
    Raises:
        DataError: `WHENCE_DATA` is unset, or a file is missing or damaged.
        InputError: More sequences are asked for than there are.
    Reference:
        Merity, Xiong, Bradbury and Socher (2016), arXiv:1609.07843.
    """
    require_count(length, "length", minimum=2)
    words = wikitext2_vocabulary(vocabulary=vocabulary)
    train, test = (_part(which, source, words, length) for which, source in (("train", TRAIN), ("test", TEST)))
    counts = (count_or_all("n_train", n_train, len(train)), count_or_all("n_test", n_test, len(test)))
    notes = (
        f"the first {counts[0]} sequences of {length} words of the validation part and {counts[1]} of the test part; "
        f"{len(words)} token ids from the validation part"
    )
    first = [part.subset(range(count)) for part, count in zip((train, test), counts, strict=True)]
    return Split(first[0], first[1], "language", len(words), "wikitext2", notes)


def wikitext2_vocabulary(*, vocabulary: int = 4096) -> Vocabulary:
    """The vocabulary of `load_wikitext2`, made from its whole train part."""
    require_count(vocabulary, "vocabulary", minimum=3)
    known = (" ".join(word for word in article if word != UNKNOWN_WORD) for article in read_articles(*TRAIN))
    return Vocabulary.of(known, vocabulary)


def _part(which: str, source: tuple[str, int], words: Vocabulary, length: int) -> Examples:
    texts = windows(read_articles(*source), length)
    return Examples({"input_ids": words.encode(texts, length)[0]}, name=f"wikitext2 {which}", texts=texts)


def windows(articles: Sequence[Sequence[str]], length: int) -> list[str]:
    """The words of each article, `length` at a time, apart by single spaces; rests are dropped."""
    starts = [(article, k) for article in articles for k in range(0, len(article) - length + 1, length)]
    return [" ".join(article[k : k + length]) for article, k in starts]


def read_articles(relative: str, n_articles: int) -> list[list[str]]:
    """The words of each article, its title and the ends of its lines among them.

    Raises:
        DataError: `WHENCE_DATA` is unset, or the file is missing, damaged or has another number of articles.
    """
    path = data_file(relative)
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise damaged(relative, error) from error
    articles: list[list[str]] = []
    for before, line in zip(["", *lines], lines, strict=False):
        if TITLE.match(line) and not before.strip():
            articles.append([])
        if articles and line.strip():
            articles[-1] += [*line.split(), END_OF_LINE]
    if len(articles) != n_articles:
        raise damaged(relative, f"it must have {n_articles} articles; found {len(articles)}")
    return articles
