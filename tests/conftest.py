"""One torch thread, no progress bars, and a plain training loop that the engines are compared with."""

import copy
import math
import os

import pytest
from hypothesis import settings

os.environ["WHENCE_PROGRESS"] = "silent"  # before anything is shown; subprocesses inherit it
# A slow machine is no failure; and every machine sees the same examples, so that a red run can be repeated. To look
# for new ones: pytest --hypothesis-profile=explore.
settings.register_profile("whence", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("whence")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests repeat, and leave the machine to others."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def train_plainly():
    """An ordinary training loop, written without the package: `(step, model)` after every step of a run on all data."""
    return _train_plainly


def _train_plainly(task, train, recipe, seed, lacks=(), n_steps=None):
    import torch

    model, n = copy.deepcopy(task.model), len(train)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(torch.optim, recipe, parameters)
    per_epoch = math.ceil(n / recipe.batch_size)
    total = recipe.steps or recipe.epochs * per_epoch
    generator = torch.Generator().manual_seed(seed)
    for step in range(total if n_steps is None else n_steps):
        if step % per_epoch == 0:
            order = torch.randperm(n, generator=generator).tolist()
            torch.randperm(n, generator=generator)
            if recipe.sampler == "same_order":
                order = [i for i in order if i not in lacks]
        place = step % per_epoch * recipe.batch_size
        indices = order[place : place + recipe.batch_size]
        if indices:  # a shortened epoch may lack its last batch
            loss = _losses(task, model, train, indices).mean()
            if recipe.sampler == "down_weight" and lacks:
                loss = loss - _losses(task, model, train, list(lacks)).sum() / n
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            for group in optimizer.param_groups:
                group["lr"] = _rate(recipe, step, total)
            optimizer.step()
        yield step + 1, model


def _losses(task, model, train, indices):
    batch = train.batch(indices)
    return task.loss(task.outputs(model, batch), batch)


def _optimizer(optim, recipe, parameters):
    plain = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "foreach": False}
    if recipe.optimizer == "sgd":
        return optim.SGD(parameters, momentum=recipe.momentum, nesterov=recipe.nesterov, **plain)
    kind = {"adam": optim.Adam, "adamw": optim.AdamW}[recipe.optimizer]
    return kind(parameters, betas=recipe.betas, eps=recipe.eps, **plain)


def _rate(recipe, step, total):
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    left = (total - step) / (total - recipe.warmup_steps)
    factor = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
    return recipe.lr * factor[recipe.schedule]
