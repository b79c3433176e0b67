"""The encoders of map-vision in OpenMMLab's toolboxes; README.md lists the modules."""
