"""The paper's ablations as data, run on any model, task and data set."""
