"""Runtime of every config: hooks, logs, and loops that read `data_root` when they start.

`mmdet-runtime.py` and `mmseg-runtime.py` add what is specific to their toolbox.
"""

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="StoppableCheckpointHook", max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
visualizer = dict(
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
    name="visualizer",
)
log_processor = dict(type="LogProcessor", window_size=50)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
log_level = "INFO"
load_from = None
resume = False
val_cfg = dict(type="DataRootValLoop")
test_cfg = dict(type="DataRootTestLoop")
