"""Runtime of the detection configs: the registered parts, and logs and checkpoints by epoch."""

_base_ = "runtime.py"

custom_imports = dict(imports=["map_dense.mmdet"], allow_failed_imports=False)
default_scope = "mmdet"

default_hooks = dict(checkpoint=dict(interval=1), visualization=dict(type="DetVisualizationHook"))
visualizer = dict(type="DetLocalVisualizer")
log_processor = dict(by_epoch=True)
