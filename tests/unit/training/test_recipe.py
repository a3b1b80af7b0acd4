"""Recipes."""

from detector.training.augmentation import SquashAndFlip
from detector.training.recipe import ClassifierRecipe, paper_recipe


def test_the_paper_recipe_keeps_the_budget_and_the_seed() -> None:
    """Everything else is as published, without a codec chain."""
    recipe = paper_recipe(ClassifierRecipe(minutes=3, seed=9))
    assert (recipe.network.depth, recipe.size, recipe.batch, recipe.learning_rate) == (50, 256, 64, 1e-4)
    assert recipe.dnf.quantise
    assert (recipe.minutes, recipe.seed) == (3, 9)
    assert isinstance(recipe.augmentation, SquashAndFlip)
