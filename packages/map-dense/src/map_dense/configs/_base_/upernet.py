"""UperNet (arXiv 1807.10221) on a plain backbone, as Vim's segmentation code builds it on mmseg's heads.

Four maps of the backbone become a pyramid of strides 4, 8, 16, 32; the auxiliary head reads the third. A config that
builds on this sets the backbone, its width in the neck and heads, and the number of classes. `EncoderDecoder` is the
class that `map_dense.mmseg` registers: images that patches do not tile are padded, and the padding is cropped off the
logits.

The decode head has 512 channels. In Vim's code it has the encoder's width, as in the configs of ViT-Small and
Vim-Small here: 41.7M and 45.4M parameters, where Vim's paper says 46M for Vim-Small. HybridNet keeps 512, as
HybridNet-Small then has 67.1M, where MAP's paper says 69M (Table 9); the encoder's width would make it 54.9M.
"""

norm = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(type="HybridNet", drop_path_rate=0.1),
    neck=dict(type="UperNetPyramid", patch_size=16, norm="sync"),
    decode_head=dict(
        type="UPerHead",
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        norm_cfg=norm,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
tta_model = dict(type="SegTTAModel")
