"""UperNet with a 16-layer HybridNet on a few images of ADE20K: labels, folders and the 150 classes, not accuracy.

Command:   CONFIG=$(map-dense config-path upernet_hybridnet-mini_cpu_ade20k-sample)
           mim train onedl-mmsegmentation $CONFIG --gpus 0 --cfg-options data_root=PATH
Hardware:  one CPU core.
Time:      36 s of CPU time, with start and evaluation.
Expected:  no number: three images tell nothing about 150 classes.
Status:    trained and evaluated here on three images (docs/reproduction.md).
Settings:  `data_root` holds `images/validation` and `annotations/validation`, which are trained and evaluated on;
           label 0, "other", is ignored (`reduce_zero_label`).
"""

_base_ = "_base_/upernet_cpu.py"

data_root = "data/ade20k_sample"
model = dict(decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150))
load_labels = dict(type="LoadLabelMap", num_classes=150, reduce_zero_label=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    load_labels,
    dict(type="RandomResize", scale=(896, 224), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(224, 224), cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(896, 224), keep_ratio=True),
    load_labels,
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [
                dict(type="Resize", scale=(int(896 * factor), int(224 * factor)), keep_ratio=True)
                for factor in (0.75, 1.0, 1.25)
            ],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [load_labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
samples = dict(
    type="ADE20KDataset",
    data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
)
train_dataloader = dict(batch_size=2, dataset=dict(samples, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(samples, pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=20, val_interval=20)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=5),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=5, end=20),
]
