"""Your own model: an `nn.Module`, batches that are dicts, a collate that pads. 25 lines of code.

`python own_model.py` writes report.html. How far its answers can be trusted, from the same `build`:
`whence gold own_model.toml`, `whence score own_model.toml`, `whence agree own_model.toml`.
"""

import torch

import whence
from whence.task import CrossEntropy, Pick

ENGLISH = "house bread friend morning water window thank school white winter strength brother journey kitchen"
ITALIAN = "casa pane amico mattina acqua finestra grazie scuola bianco inverno forza fratello viaggio cucina"


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.letters, self.hidden, self.out = torch.nn.Embedding(27, 8), torch.nn.Linear(8, 16), torch.nn.Linear(16, 2)

    def forward(self, letters, mask):  # the mean of the letters, without the padding
        return self.out(self.hidden((self.letters(letters) * mask).sum(1) / mask.sum(1)).tanh())


def collate(items):  # [("casa", 1), ...] -> a dict of tensors with the words as first dimension
    letters = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(w.encode())) - 96 for w, _ in items], batch_first=True)
    return {"word": letters, "mask": (letters > 0)[..., None].float(), "label": torch.tensor([y for _, y in items])}


def build():
    torch.manual_seed(0)  # the same model every time; a real project loads a checkpoint here
    words = [(word, label) for label, text in enumerate([ENGLISH, ITALIAN]) for word in text.split()]
    train = whence.Examples(words, collate=collate, ids=[w for w, _ in words], class_names=["English", "Italian"])
    queries = whence.Examples([("window", 0), ("luna", 1), ("garden", 0)], collate=collate)
    task = whence.Task(Reader().eval(), outputs=lambda m, b: m(b["word"], b["mask"]), loss=CrossEntropy(Pick("label")))
    return whence.train(task, train, whence.Recipe(lr=0.2, batch_size=10, epochs=20)), train, queries


if __name__ == "__main__":
    task, train, queries = build()
    scores = whence.attribute(task, train, queries, method="influence_gn")
    whence.write_report("report.html", whence.ReportCase("English or Italian?", train, queries, scores))
