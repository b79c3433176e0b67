"""The commands as functions, ``map_points.pretrain(...)`` and so on; see ``map_core.commands.python.Functions``."""

from map_core.commands.python import Functions
from map_points.cli import COMMANDS

_FUNCTIONS = Functions(COMMANDS, "map_points.recipes", files="clouds")
pretrain, finetune = _FUNCTIONS.pretrain, _FUNCTIONS.finetune
predict, features = _FUNCTIONS.predict, _FUNCTIONS.features
