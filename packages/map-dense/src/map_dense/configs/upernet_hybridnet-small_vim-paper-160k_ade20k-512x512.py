"""UperNet with HybridNet-Small on ADE20K, crops of 512x512, 160,000 iterations of 16 images (Vim's paper, unverified).

Command:   CONFIG=$(map-dense config-path upernet_hybridnet-small_vim-paper-160k_ade20k-512x512)
           mim train onedl-mmsegmentation $CONFIG --launcher pytorch --gpus 8 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 16, here 8 of 2 images; set train_dataloader.batch_size for others.
Time:      not measured.
Expected:  mIoU 46.9 after MAP pretraining; 45.6 after supervised training (paper, Table 9).
Status:    not reproduced here; builds.
Settings:  AdamW 6e-5, weight decay 0.01, no layer decay, which differ from Vim's code;
           512 channels in the decode head, 67.1M parameters (the paper: 69M); the encoder's width, as in Vim's
           code, would make 54.9M.
"""

_base_ = "_base_/upernet_vim-paper-160k_ade20k-512x512.py"

width = 384
model = dict(
    backbone=dict(name="hybridnet_small_patch16_224", img_size=512, out_indices=[7, 15, 23, 31]),
    neck=dict(embed_dim=width),
    decode_head=dict(in_channels=[width] * 4),
    auxiliary_head=dict(in_channels=width),
)
