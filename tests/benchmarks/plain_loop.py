"""The loop that rjem's speed is measured against: what JEM++ with an attack becomes when its equations are written down
as they are told.

fp32 in PyTorch's own memory layout; BatchNorm in train mode in attacks and chains; each inner step taken; starts drawn
from the prior one image at a time, for the whole batch; the replay buffer on the host; a pass for each of x_adv, x and
x_q. For timing only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from rjem_cli.config.training import TrainConfig
from rjem_cli.engine.attacks.pgd import default_step_size
from rjem_cli.engine.models.energy import energy
from rjem_cli.engine.models.prior import ClassGaussianPrior
from rjem_cli.engine.networks.wide_resnet import LEAKY_SLOPE, WideResNet


class PlainLoop:
    """`prior` has Cholesky factors."""

    def __init__(self, config: TrainConfig, prior: ClassGaussianPrior, device: torch.device):
        self.config, self.image_shape, self.device = config, prior.image_shape, device
        classes = len(prior.mean_KD)
        model = WideResNet(self.image_shape[0], classes, config.depth, config.width, config.norm_layer)
        self.model = model.to(device).train()
        self.priors = [
            MultivariateNormal(mean, scale_tril=factor, validate_args=False)
            for mean, factor in zip(prior.mean_KD, prior.factors)
        ]
        self.buffer = torch.rand(config.buffer_size, *self.image_shape) * 2 - 1
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )

    def pgd(self, center: Tensor, labels: Tensor, steps: int) -> Tensor:
        """Eq. 2, from the images."""
        eps, step_size = self.config.adv_eps, default_step_size(self.config.adv_eps, self.config.pgd_steps)
        x = center.clone()
        for _ in range(steps):
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(self.logits(x), labels), x)
            x = torch.min(torch.max(x + step_size * gradient.sign(), center - eps), center + eps).clamp(-1, 1)
        return x.detach()

    def behind_the_stem(self, hidden: Tensor) -> Tensor:
        for block in self.model.blocks:
            x = block.conv1(F.leaky_relu(block.norm1(hidden), LEAKY_SLOPE))
            x = block.conv2(F.leaky_relu(block.norm2(x), LEAKY_SLOPE))
            hidden = x + block.shortcut(hidden)
        return self.model.head(F.leaky_relu(self.model.norm(hidden), LEAKY_SLOPE).mean(dim=(2, 3)))

    def logits(self, x: Tensor) -> Tensor:
        return self.behind_the_stem(self.model.stem(x))

    def sgld(self, x: Tensor, steps: int) -> Tensor:
        """Eq. 1 as JEM++ splits it: the gradient at the first layer's output once, then `inner_steps` steps through
        that layer alone."""
        config = self.config
        for _ in range(steps):
            hidden = self.model.stem(x.detach())
            hidden = hidden.detach().requires_grad_()
            (outer,) = torch.autograd.grad(energy(self.behind_the_stem(hidden)).sum(), hidden)
            for _ in range(config.inner_steps):
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad((self.model.stem(x) * outer).sum(), x)
                x = (x - config.sgld_step_size * gradient.clamp(-config.grad_clip, config.grad_clip)).clamp(-1, 1)
        return x.detach()

    def prior_starts(self, count: int) -> Tensor:
        labels = torch.randint(len(self.priors), (count,)).tolist()
        drawn = torch.stack([self.priors[label].sample().view(self.image_shape) for label in labels])
        return drawn.clamp(-1, 1)

    def negatives(self, count: int, steps: int) -> Tensor:
        places = torch.randint(len(self.buffer), (count,))
        fresh = (torch.rand(count) < self.config.reinit_prob).float()[:, None, None, None]
        starts = fresh * self.prior_starts(count) + (1 - fresh) * self.buffer[places]
        x = self.sgld(starts.to(self.device), steps)
        self.buffer[places] = x.cpu()
        return x

    def train_step(self, pixels: Tensor, labels: Tensor) -> float:
        """On uint8 images of the host; the loss is read after each step."""
        config = self.config
        x = pixels.to(self.device).float() / 127.5 - 1
        labels = labels.to(self.device)
        x_adv = self.pgd(x, labels, config.pgd_steps)
        x_q = self.negatives(len(x), config.sgld_steps)
        loss = F.cross_entropy(self.logits(x_adv), labels)
        loss = loss + energy(self.logits(x)).mean() - energy(self.logits(x_q)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
