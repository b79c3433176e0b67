"""The objectives beside the paper's: one file each, with the settings that a recipe gives it."""
