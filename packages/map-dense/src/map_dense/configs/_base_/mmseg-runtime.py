"""Runtime of the segmentation configs: the registered parts, and logs and checkpoints by iteration."""

_base_ = "runtime.py"

custom_imports = dict(imports=["map_dense.mmseg"], allow_failed_imports=False)
default_scope = "mmseg"

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000),
    visualization=dict(type="SegVisualizationHook"),
)
visualizer = dict(type="SegLocalVisualizer")
log_processor = dict(by_epoch=False)
