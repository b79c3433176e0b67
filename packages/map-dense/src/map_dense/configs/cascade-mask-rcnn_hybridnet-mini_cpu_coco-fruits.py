"""Cascade Mask R-CNN with an eight-layer HybridNet on 13 photos of dates, figs and hazelnuts: does it learn?

Command:   CONFIG=$(map-dense config-path cascade-mask-rcnn_hybridnet-mini_cpu_coco-fruits)
           mim train onedl-mmdetection $CONFIG --gpus 0 --cfg-options data_root=PATH
Hardware:  one CPU core.
Time:      39 minutes alongside other work; on an idle core 0.74 s per step of two photos (13 minutes in all).
Expected:  box AP50 92.8, mask AP50 90.0 on the training photos; 37.3, 34.9 on the others (seed 0).
Status:    reproduced here, see docs/reproduction.md.
Settings:  `data_root` holds `images/`, `instances_train.json` (13 photos) and `instances_val.json` (5 others).
           Validation is on the TRAINING photos, which a detector that works must learn; testing is on the others.
"""

_base_ = "_base_/cascade-mask-rcnn_cpu.py"

data_root = "data/coco_fruits"
classes = ("date", "fig", "hazelnut")

model = dict(
    roi_head=dict(
        bbox_head=[dict(head, num_classes=len(classes)) for head in _base_.model.roi_head.bbox_head],
        mask_head=dict(num_classes=len(classes)),
    )
)
training_photos = dict(
    ann_file="instances_train.json", data_prefix=dict(img="images/"), metainfo=dict(classes=classes)
)
other_photos = dict(training_photos, ann_file="instances_val.json")
train_dataloader = dict(dataset=dict(dataset=training_photos))
val_dataloader = dict(dataset=training_photos)
val_evaluator = dict(ann_file="instances_train.json")
test_dataloader = dict(dataset=other_photos)
test_evaluator = dict(ann_file="instances_val.json")
