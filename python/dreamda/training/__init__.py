"""AMST: recipe, heads, views, the classifier, its metrics and saved models."""
