"""UperNet with a 16-layer HybridNet on 36 street scenes of CamVid, 11 classes: does it learn?

Command:   CONFIG=$(map-dense config-path upernet_hybridnet-mini_cpu_camvid)
           mim train onedl-mmsegmentation $CONFIG --gpus 0 --cfg-options data_root=PATH \
               model.backbone.init_cfg.checkpoint=RUN
Hardware:  one CPU core.
Time:      15 minutes.
Expected:  mIoU 24 to 28 from a pretraining run on the same 36 images, 24 to 26 from scratch; 2.7 if all were road.
Status:    reproduced here, three seeds (docs/reproduction.md); 14 validation images, so seeds differ by points.
Settings:  `data_root` holds `images/{train,val}` (480x360) and `annotations/{train,val}` with labels 0 to 10, and 11
           for void, which is ignored. RUN is a map-vision pretraining run of the same encoder; leave the last option
           out to train from scratch.
"""

_base_ = "_base_/upernet_cpu.py"

data_root = "data/camvid_mini"
num_classes = 11
void = 11

model = dict(
    data_preprocessor=dict(seg_pad_val=void),
    decode_head=dict(num_classes=num_classes, ignore_index=void),
    auxiliary_head=dict(num_classes=num_classes, ignore_index=void),
)
load_labels = dict(type="LoadLabelMap", num_classes=num_classes, ignore_index=void)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    load_labels,
    dict(type="RandomResize", scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(224, 224), cat_max_ratio=0.75, ignore_index=void),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), load_labels, dict(type="PackSegInputs")]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale_factor=factor, keep_ratio=True) for factor in (0.75, 1.0, 1.25)],
            [dict(type="RandomFlip", prob=0.0), dict(type="RandomFlip", prob=1.0)],
            [load_labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
scenes = dict(type="CamVid")
train_dataloader = dict(
    dataset=dict(
        scenes,
        data_prefix=dict(img_path="images/train", seg_map_path="annotations/train"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        scenes,
        data_prefix=dict(img_path="images/val", seg_map_path="annotations/val"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(ignore_index=void)
test_evaluator = val_evaluator
