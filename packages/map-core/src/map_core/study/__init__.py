"""Studies: arms compared on equal grids of learning rates and equal data, at stated compute, over several seeds.

``plan`` decides what to run next, given the results; ``runner`` runs it; ``results`` keeps one line per run; ``report``
turns the lines into tables and pictures.
"""
