"""UperNet with MambaVision-Tiny on ADE20K, crops of 512x512, 160,000 iterations of 16 images.

Command:   CONFIG=$(map-dense config-path upernet_mambavision-tiny_160k_ade20k-512x512)
           mim train onedl-mmsegmentation $CONFIG --launcher pytorch --gpus 8 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 16, here 8 of 2 images; set train_dataloader.batch_size for others.
Time:      not measured.
Expected:  mIoU 46.0 after supervised training on ImageNet (MambaVision's authors).
Status:    not reproduced here; builds, and takes an optimizer step at reduced size.
Settings:  AdamW 5e-5, weight decay 0.01, 1500 iterations of warmup, a linear fall to 0, no layer decay, windows of
           64 and 32 in stages three and four, as published; drop path 0.2, which their backbone uses whatever their
           config says. RUN is a run of map-vision, its weights file, or their checkpoint.
"""

_base_ = "_base_/upernet_vim-paper-160k_ade20k-512x512.py"

widths = [80, 160, 320, 640]
model = dict(
    backbone=dict(
        _delete_=True,
        type="MambaVision",
        name="map_mambavision_tiny",
        window_size=[64, 32],
        drop_path_rate=0.2,
    ),
    neck=None,  # the backbone is a pyramid
    decode_head=dict(in_channels=widths),
    auxiliary_head=dict(in_channels=widths[2]),
)
optim_wrapper = dict(
    constructor="DefaultOptimWrapperConstructor",
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0),
    optimizer=dict(lr=5e-5),
)
