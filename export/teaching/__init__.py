"""From labelled frames to a recipe: supports, views, text, and the five steps of `fit_recipe`."""
