"""Cascade Mask R-CNN small enough for a CPU: 64 channels, few proposals, 320x240 pixels, eight layers of width 192.

A config that builds on this sets the data, and `num_classes` in every head.
"""

_base_ = ["mmdet-runtime.py", "cpu.py", "cascade-mask-rcnn.py"]

channels = 64
model = dict(
    backbone=dict(
        name="hybridnet_tiny_patch16_224",
        img_size=(240, 320),
        layout="(MMMT)x2",
        num_heads=6,
        out_indices=[7],
        drop_path_rate=0.0,
    ),
    neck=dict(in_channels=192, out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels, anchor_generator=dict(scales=[6])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=channels, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=[
            dict(head, in_channels=channels, conv_out_channels=channels, fc_out_channels=256)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_roi_extractor=dict(out_channels=channels, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=channels, conv_out_channels=channels),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=[dict(stage, sampler=dict(stage.sampler, num=64)) for stage in _base_.model.train_cfg.rcnn],
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=50)),
)

image_size = (320, 240)  # width, height
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="Repeated", times=4, dataset=dict(type="CocoDataset", pipeline=train_pipeline)),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric=["bbox", "segm"])
test_evaluator = val_evaluator

train_cfg = dict(type="DataRootEpochBasedTrainLoop", max_epochs=40, val_interval=4)
optim_wrapper = dict(optimizer=dict(lr=5e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=40, eta_min=1e-5, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=13), checkpoint=dict(interval=4))
env_cfg = dict(dist_cfg=dict(backend="gloo"))
