"""Cascade Mask R-CNN with HybridNet-Tiny on COCO 2017, 1024x1024 with large-scale jitter, 36 epochs.

Command:   as for cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco, with this name.
Hardware:  any number of GPUs with a total batch of 64, here 8 of 8 images.
Time:      not measured; 36 % of the long schedule's iterations.
Expected:  no published number: the paper trains for 100 epochs.
Status:    not reproduced here; builds.
Settings:  those of the long schedule, with every milestone at the same fraction of the training.
"""

_base_ = "cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco.py"

train_cfg = dict(max_iters=66375)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=66375, milestones=[59000, 63917], gamma=0.1),
]
