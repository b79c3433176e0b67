"""Cascade Mask R-CNN with HybridNet-Base on COCO 2017, 1024x1024 with large-scale jitter, 100 epochs.

Command:   CONFIG=$(map-dense config-path cascade-mask-rcnn_hybridnet-base_lsj-100e_coco)
           mim train onedl-mmdetection $CONFIG --launcher pytorch --gpus 8 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 64, here 8 of 8 images; set train_dataloader.batch_size for others
           (the authors' script: 4 of 16).
Time:      not measured.
Expected:  no published number (the paper has the tiny model's only).
Status:    not reproduced here; builds.
Settings:  those of Vim's detection code (`_base_/cascade-mask-rcnn_lsj-100e_coco.py`), layer decay 0.7 over 24 layers.
"""

_base_ = "_base_/cascade-mask-rcnn_lsj-100e_coco.py"

model = dict(
    backbone=dict(name="hybridnet_base_patch16_224", img_size=1024, out_indices=[31]),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.7))
