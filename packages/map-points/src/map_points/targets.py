"""Targets coarser than a patch: more of the points around its centre."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from map_core.errors import UserError
from map_core.tokens import Tokens
from map_points.patches.dispatch import find_neighbors
from map_points.patches.neighbors import gather_neighbors


@dataclass(frozen=True)
class WiderPatches:
    """Patches around the same centres with several times the points, relative to the centre.

    A prediction has as many points as a patch at every scale: at a coarser one they describe more of the cloud.

    Attributes:
        patch_size: Points of a patch.
        scales: For each wider patch, how many times as many points it has.
    """

    patch_size: int
    scales: tuple[int, ...]

    def __call__(self, inputs: Float[Tensor, "b n c"], tokens: Tokens) -> Sequence[Tensor]:
        return [self.around(inputs[..., :3], tokens.position, scale) for scale in self.scales]

    def around(
        self, points: Float[Tensor, "b n 3"], center: Float[Tensor, "b l 3"], scale: int
    ) -> Float[Tensor, "b l k 3"]:
        """The points nearest to each centre, relative to it.

        Raises:
            UserError: a cloud does not have that many points.
        """
        count = scale * self.patch_size
        if count > points.shape[1]:
            raise UserError(
                f"objective.target_scales asks for {scale} x {self.patch_size} points around a centre, but a cloud has "
                f"{points.shape[1]}: use smaller scales or raise data.num_points"
            )
        index = find_neighbors(center, points, count)
        return gather_neighbors(points, index) - center.unsqueeze(2)
