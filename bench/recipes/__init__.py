"""Recipes, one YAML file a published system, and the code that loads and checks them."""
