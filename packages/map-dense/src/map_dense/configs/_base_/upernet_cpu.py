"""UperNet small enough for a CPU: 16 layers of width 192, heads of 64 channels, BatchNorm, crops of 224x224.

A config that builds on this sets the data and the number of classes.
"""

_base_ = ["mmseg-runtime.py", "cpu.py", "upernet.py"]

norm = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(size=(224, 224)),
    backbone=dict(
        name="hybridnet_tiny_patch16_224", img_size=224, layout="(MMMT)x4", num_heads=6, drop_path_rate=0.0
    ),
    neck=dict(embed_dim=192, norm="batch"),
    decode_head=dict(in_channels=[192] * 4, channels=64, norm_cfg=norm),
    auxiliary_head=dict(in_channels=192, channels=64, norm_cfg=norm),
    test_cfg=dict(_delete_=True, mode="whole"),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
)
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="DataRootIterBasedTrainLoop", max_iters=500, val_interval=100)
optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=3.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=30, end=500),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100))
log_processor = dict(window_size=10)  # each line's time is that of the steps since the previous line
env_cfg = dict(dist_cfg=dict(backend="gloo"))
