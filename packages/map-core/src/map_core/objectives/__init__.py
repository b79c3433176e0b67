"""The settings of each objective, and the objectives other than the paper's, which is ``map_core/objective.py``."""
