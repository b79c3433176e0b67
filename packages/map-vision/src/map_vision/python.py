"""The commands as functions, such as ``map_vision.pretrain(...)``; see ``map_core.commands.python.Functions``."""

from map_core.commands.python import Functions
from map_vision.cli import COMMANDS

_FUNCTIONS = Functions(COMMANDS, "map_vision.recipes", files="images")
pretrain, finetune = _FUNCTIONS.pretrain, _FUNCTIONS.finetune
predict, features = _FUNCTIONS.predict, _FUNCTIONS.features
