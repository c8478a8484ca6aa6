"""Muon for the matrices inside the blocks, AdamW for the rest, and the moving average of the weights."""
import torch


def orthogonalize(g, steps=5):
    """Newton-Schulz iteration toward the nearest orthogonal matrix, for a stack of matrices."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized (Jordan et al. 2024); matrices of one shape are handled as one stack.

    A convolution's weight counts as the matrix [out, in * height * width].
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        shapes = {}
        for p in params:
            shapes.setdefault(tuple(p.shape), []).append(p)
        groups = [{"params": ps} for ps in shapes.values()]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params = group["params"]
            state = self.state[params[0]]
            g = torch.stack([p.grad.flatten(1) for p in params])
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(g)
            state["momentum"].lerp_(g, 1 - group["momentum"])
            update = orthogonalize(g.lerp(state["momentum"], group["momentum"]))
            rows, columns = g.shape[1:]
            scale = max(1, rows / columns) ** 0.5
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            updates = [u.view(p.shape) for u, p in zip(update.to(g.dtype).unbind(0), params)]
            torch._foreach_add_(params, updates, alpha=-group["lr"] * scale)


class Average:
    """Exponential moving average of a module's parameters, kept in a twin module."""

    def __init__(self, module, twin, decay=0.999):
        self.source, self.twin, self.decay, self.n = list(module.parameters()), twin, decay, 0
        twin.load_state_dict(module.state_dict())
        twin.requires_grad_(False).eval()
        self.target = list(twin.parameters())

    @torch.no_grad()
    def update(self):
        self.n += 1
        decay = min(self.decay, self.n / (self.n + 10))
        torch._foreach_lerp_(self.target, self.source, 1 - decay)
