"""UperNet on ADE20K for 160,000 iterations of 16 images: attributed to the appendix of Vim's paper, not verified.

AdamW 6e-5, weight decay 0.01, 1500 iterations of linear warmup, then a linear fall to 0, no layer decay. Whatever
that text leaves open is as in Vim's code.
"""

_base_ = ["upernet_vim-code-60k_ade20k-512x512.py"]

train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=160000, val_interval=16000)
optim_wrapper = dict(
    paramwise_cfg=dict(decay_rate=1.0, reference_layers=None),
    optimizer=dict(lr=6e-5, weight_decay=0.01),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=160000),
]
default_hooks = dict(checkpoint=dict(interval=16000))
auto_scale_lr = dict(base_batch_size=16)
