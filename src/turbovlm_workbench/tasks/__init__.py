"""Tasks: a model and images in, predictions and their quality out. One file per task."""
