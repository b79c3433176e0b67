"""Freezing the first stages of a backbone."""

from torch import nn


class FreezableBackbone(nn.Module):
    """A backbone whose frozen modules get no gradients and stay in evaluation mode, with the statistics they have."""

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that are not trained."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Take the parameters of :meth:`frozen_modules` out of training."""
        for module in self.frozen_modules():
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "FreezableBackbone":
        """Set the mode of all but :meth:`frozen_modules`, which stay in evaluation mode."""
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self
