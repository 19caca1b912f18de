"""Ridge regression from voxels to targets, closed form: the linear systems of the field."""

from encoders.ridge.encoder import Ridge
from encoders.ridge.options import RidgeOptions

__all__ = ["Ridge", "RidgeOptions"]
