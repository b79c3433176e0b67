"""UperNet with HybridNet-Base on ADE20K, crops of 512x512, 60,000 iterations of 32 images (Vim's code).

Command:   CONFIG=$(map-dense config-path upernet_hybridnet-base_vim-code-60k_ade20k-512x512)
           mim train onedl-mmsegmentation $CONFIG --launcher pytorch --gpus 4 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 32, here 4 of 8 images; set train_dataloader.batch_size for others.
Time:      not measured.
Expected:  none: the paper reports no segmentation with this size.
Status:    not reproduced here; builds.
Settings:  those of the small model; Vim has no script for this size;
           512 channels in the decode head, as with the small model, where Vim's code has the encoder's width.
"""

_base_ = "_base_/upernet_vim-code-60k_ade20k-512x512.py"

width = 768
model = dict(
    backbone=dict(name="hybridnet_base_patch16_224", img_size=512, out_indices=[7, 15, 23, 31]),
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.95), optimizer=dict(lr=1e-4, weight_decay=0.05))
