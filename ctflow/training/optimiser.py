"""Optimiser: orthogonalised momentum (Muon) for the convolutions, AdamW for everything else."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import AdamW, Muon


class Optimiser:
    """Muon for the convolutions between stem and head, AdamW for everything else, in one step.

    Muon moves all singular directions of a layer's weights equally, seen as a matrix from inputs to outputs;
    its step is scaled to that of AdamW, so that one learning rate serves both.

    Args:
        network: network whose weights are `torch.channels_last`.
        weight_decay: decay of the weights, per step and learning rate.

    References:
        Jordan et al., 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al., 2025,
        "Muon is scalable for LLM training", section 2.2 (the scale); Loshchilov and Hutter, ICLR 2019
        (AdamW).
    """

    def __init__(self, network: nn.Module, weight_decay: float = 1e-4) -> None:
        self.kernels: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, weight in network.named_parameters():
            dense = weight.ndim == 4 and weight.shape[1] > 1
            outermost = name.startswith(("stem.", "head."))
            (self.kernels if dense and not outermost else others).append(weight)
        self.matrices = [nn.Parameter(_matrix(kernel.data)) for kernel in self.kernels]
        self.muon = Muon(self.matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adam = AdamW(others, weight_decay=weight_decay)

    def step(self, rate: float) -> None:
        """Move the weights along their gradients, at a learning rate."""
        for matrix, kernel in zip(self.matrices, self.kernels, strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        for optimiser in (self.muon, self.adam):
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, dict[str, object]]:
        """Return the moments, for a checkpoint."""
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Continue with the moments of a checkpoint."""
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def _matrix(kernel: Tensor) -> Tensor:
    """A channels-last kernel (out, in, rows, columns) as a matrix (out, rest) that shares its memory."""
    return kernel.permute(0, 2, 3, 1).view(len(kernel), -1)
