"""Cascade Mask R-CNN with an eight-layer HybridNet on a few images of COCO 2017: the plumbing with 80 classes.

Command:   CONFIG=$(map-dense config-path cascade-mask-rcnn_hybridnet-mini_cpu_coco-tiny)
           mim train onedl-mmdetection $CONFIG --gpus 0 --cfg-options data_root=PATH
Hardware:  one CPU core.
Time:      2 minutes for ten images in training and six in validation.
Expected:  that it runs; ten images teach nothing about others.
Status:    run here, training and test; see docs/reproduction.md.
Settings:  `data_root` is laid out as COCO 2017 itself, which also works.
"""

_base_ = "_base_/cascade-mask-rcnn_cpu.py"

data_root = "data/coco_tiny"

train_dataloader = dict(
    dataset=dict(
        times=1,
        dataset=dict(
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
        ),
    )
)
val_dataloader = dict(
    dataset=dict(ann_file="annotations/instances_val2017.json", data_prefix=dict(img="val2017/"))
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="annotations/instances_val2017.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=10, val_interval=5)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=10),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=10, eta_min=1e-5, convert_to_iter_based=True),
]
