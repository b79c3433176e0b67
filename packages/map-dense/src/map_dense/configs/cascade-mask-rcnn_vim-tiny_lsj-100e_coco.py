"""Cascade Mask R-CNN with Vim-Tiny on COCO 2017, 1024x1024 with large-scale jitter, 100 epochs.

Command:   CONFIG=$(map-dense config-path cascade-mask-rcnn_vim-tiny_lsj-100e_coco)
           mim train onedl-mmdetection $CONFIG --launcher pytorch --gpus 8 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 64, here 8 of 8 images; set train_dataloader.batch_size for others
           (the authors' script: 4 of 16).
Time:      not measured.
Expected:  box AP 45.7, mask AP 39.2 (paper, Table 10).
Status:    not reproduced here; builds.
Settings:  as `cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco`, on 24 layers; RUN may be a checkpoint that
           `map-vision convert` wrote.
"""

_base_ = "cascade-mask-rcnn_hybridnet-tiny_lsj-100e_coco.py"

model = dict(backbone=dict(type="MapVim", name="map_vim_tiny_patch16_224", out_indices=[23]))
