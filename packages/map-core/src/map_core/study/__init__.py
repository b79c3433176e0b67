"""Studies: arms compared at equal grids of learning rates, equal data and stated compute, over several seeds.

``plan`` says what is to be run, given what was; ``runner`` runs it; ``results`` keeps one line a run; ``report`` turns
the lines into tables and pictures.
"""
