"""Training a model on all data by a recipe: the same loop as every gold standard, for one run."""

from __future__ import annotations

from whence.data import Examples
from whence.task import Task
from whence.training.dropout import refuse_functional_dropout, training_twin
from whence.training.job import Job
from whence.training.loop import run_loop
from whence.training.recipe import Recipe


def train(task: Task, examples: Examples, recipe: Recipe, *, seed: int = 0) -> Task:
    """Train the task's model in place, from its present parameters, and return the task.

    Args:
        task: Its model, in eval mode, is the start; dropout modules are active while training, batch-norm statistics
            stay as they are.
        examples: Train examples.
        recipe: How, and how much.
        seed: Seed of the order of examples and of dropout.
    Returns:
        The same task; `task.model` is in eval mode.
    Raises:
        NonFiniteError: Training diverged.
        UnsupportedError: The model has dropout that is no `nn.Dropout` module, and the recipe asks for dropout.
    Cost:
        One ordinary training.
    """
    task.require_eval()
    if recipe.dropout:
        refuse_functional_dropout(task, examples.batch(range(min(2, len(examples)))))
    end = recipe.steps_at(recipe.amount, len(examples))
    few = examples.subset(range(min(16, len(examples))))
    twin = training_twin(task, recipe.dropout)
    result = run_loop(Job(twin, examples, few, recipe, seed, ((),), (end,), keep_parameters=True))
    own = dict(task.model.named_parameters())
    for name, values in result.parameters.items():
        own[name].data.copy_(values[0])
    return task
