"""What ``sync_batchnorm=True`` does, on processes without a GPU, where torch's SyncBatchNorm refuses to train."""

import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient.contiguous())


class SynchronizedNorm(nn.BatchNorm1d):
    """Batch norm by the mean and variance over the batches of all processes."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return super().forward(inputs)
        ones = inputs.new_ones(1, inputs.shape[1])
        count, total, squares = _Sum.apply(
            torch.stack([part.sum(0) for part in (ones * len(inputs), inputs, inputs**2)])
        )
        mean = total / count
        variance = squares / count - mean**2
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return (inputs - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


class SynchronizeNorms(LayerSync):
    """Turns batch norms into synchronized ones for a fit, and back."""

    def apply(self, model: nn.Module) -> nn.Module:
        return self._turn(model, nn.BatchNorm1d, SynchronizedNorm)

    def revert(self, model: nn.Module) -> nn.Module:
        return self._turn(model, SynchronizedNorm, nn.BatchNorm1d)

    def _turn(self, model: nn.Module, old: type, new: type) -> nn.Module:
        for name, child in model.named_children():
            if type(child) is old:
                other = new(child.num_features)
                other.__dict__.update(child.__dict__)  # the same parameters and buffers
                setattr(model, name, other)
            else:
                self._turn(child, old, new)
        return model
