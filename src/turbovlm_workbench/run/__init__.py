"""Evaluations that resume, on one process or several."""
