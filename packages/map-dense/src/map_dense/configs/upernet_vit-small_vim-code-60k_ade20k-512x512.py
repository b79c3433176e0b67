"""UperNet with ViT-Small (the row of DeiT) on ADE20K, crops of 512x512, 60,000 iterations of 32 images (Vim's code).

Command:   CONFIG=$(map-dense config-path upernet_vit-small_vim-code-60k_ade20k-512x512)
           mim train onedl-mmsegmentation $CONFIG --launcher pytorch --gpus 4 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  any number of GPUs with a total batch of 32, here 4 of 8 images; set train_dataloader.batch_size for others.
Time:      not measured.
Expected:  no number available; the row to compare HybridNet-S with (paper, Table 9).
Status:    not reproduced here; builds.
Settings:  as `upernet_hybridnet-small_vim-code-60k_ade20k-512x512`, on 12 layers, with a decode head of the encoder's
           width, as Vim-Small has here: 41.7M parameters; RUN may be a checkpoint that `map-vision convert` wrote.
"""

_base_ = "upernet_hybridnet-small_vim-code-60k_ade20k-512x512.py"

model = dict(
    backbone=dict(type="MapViT", name="map_vit_small_patch16_224", out_indices=[2, 5, 8, 11]),
    decode_head=dict(channels=384),
)
