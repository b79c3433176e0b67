"""Cascade Mask R-CNN on COCO 2017 as ViTDet and Vim train: large-scale jitter at 1024x1024, 100 epochs, batches of 64.

Images are resized by 0.1 to 2, cropped, flipped and padded to 1024x1024 (by the data preprocessor); testing resizes
the longer side to 1024. `data_root` holds `train2017/`, `val2017/` and `annotations/instances_{train,val}2017.json`.

AdamW 1e-4, weight decay 0.1, layer decay 0.837 over 24 layers (rescaled to the backbone's), drop path 0.1, attention
over all 4096 patches (`model.backbone.window_size` limits it) and fp16, as in Vim's detection code, which the paper
says to follow. Not bf16: mmdet makes the anchors of proposals in the dtype of the scores, and bf16 would round
coordinates above 512 to 4 pixels. Mixed precision needs a GPU and was not run here; on a CPU add
`optim_wrapper.type=OptimWrapper`. A config that builds on this sets the backbone and `neck.in_channels`.

The three stages weigh 1 each, as in ViTDet and Vim (mmdet's default is 1, 0.5, 0.25), and the loss of each of the
three mask heads 1/3, so that masks weigh as much as with their single head. `cascade-mask-rcnn.py` lists the other
differences.
"""

_base_ = ["mmdet-runtime.py", "cascade-mask-rcnn.py"]

data_root = "data/coco"

image_size = (1024, 1024)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type="RandomCrop",
        crop_type="absolute",
        crop_size=image_size,
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
    dict(type="FilterAnnotations", min_gt_bbox_wh=(1e-2, 1e-2)),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=image_size, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

model = dict(
    data_preprocessor=dict(pad_size_divisor=1024),
    roi_head=dict(
        stage_loss_weights=[1, 1, 1],
        mask_head=dict(loss_mask=dict(loss_weight=1 / 3)),
    ),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="CocoDataset",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric", ann_file="annotations/instances_val2017.json", metric=["bbox", "segm"]
)
test_evaluator = val_evaluator

train_cfg = dict(type="DataRootIterBasedTrainLoop", max_iters=184375, val_interval=5000)
optim_wrapper = dict(
    type="AmpOptimWrapper",
    constructor="HybridLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.837, reference_layers=24),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.1),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=184375, milestones=[163889, 177546], gamma=0.1),
]
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(enable=False, base_batch_size=64)
