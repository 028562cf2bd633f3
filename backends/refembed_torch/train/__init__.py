"""The paper's recipe, stage by stage. Start at command.py; every stage follows loop.Stage. Words: spec/14-recipe.md."""
