"""The paper's FLOPs columns: its rows as a table, the models that they counted, and the count."""
