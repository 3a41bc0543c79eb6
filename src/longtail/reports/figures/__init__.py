"""Figures of the papers, drawn from this project's own runs and numbers: one module per figure."""
