"""Part segmentation: model, metrics, and the task of the training engine."""
