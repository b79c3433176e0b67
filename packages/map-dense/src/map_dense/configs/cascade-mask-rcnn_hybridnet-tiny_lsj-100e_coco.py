"""Cascade Mask R-CNN with HybridNet-Tiny on COCO 2017, 1024x1024 with large-scale jitter, 100 epochs.

Command:   CONFIG=$(map-dense config-path cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco)
           mim train onedl-mmdetection $CONFIG --launcher pytorch --gpus 8 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 64, here 8 of 8 images; set train_dataloader.batch_size for others
           (the authors' script: 4 of 16).
Time:      not measured.
Expected:  box AP 46.4, mask AP 39.8 after MAP pretraining; 45.9, 39.2 without (paper, Table 10).
Status:    not reproduced here; builds, and takes an optimizer step at this size on a CPU (batch 1).
Settings:  those of Vim's detection code (`_base_/cascade-mask-rcnn_lsj-100e_coco.py`).
"""

_base_ = "_base_/cascade-mask-rcnn_lsj-100e_coco.py"

model = dict(
    backbone=dict(name="hybridnet_tiny_patch16_224", img_size=1024, out_indices=[31]),
    neck=dict(in_channels=192),
)
