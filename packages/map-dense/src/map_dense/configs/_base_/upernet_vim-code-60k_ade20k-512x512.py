"""UperNet on ADE20K for 60,000 iterations of 32 images: the settings of Vim's segmentation code.

AdamW 1e-4, betas 0.9 and 0.999, weight decay 0.05, 1500 iterations of linear warmup from 1e-6 of the rate, then a
linear fall to 0, no clipping, float32 (mmseg's `--amp` trains in fp16). Layer decay 0.92 over 24 layers, rescaled to
the backbone's: Vim's constructor looks for names that its backbone does not have and damps the embeddings alone
(by 0.92 ** 25); here it reaches every layer.
"""

_base_ = ["mmseg-runtime.py", "upernet.py", "ade20k-512x512.py"]

model = dict(decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150))
train_cfg = dict(type="DataRootIterBasedTrainLoop", max_iters=60000, val_interval=6000)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="HybridLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=0.92, reference_layers=24),
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=60000),
]
default_hooks = dict(checkpoint=dict(interval=6000))
auto_scale_lr = dict(enable=False, base_batch_size=32)
