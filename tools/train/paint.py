"""Draw scenes on the GPU, antialiased, from the font's bitmaps."""
import numpy as np
import torch
import torch.nn.functional as F

import scenes

BANK = 256       # the glyphs are kept at twice the font's resolution


def cubic(x):
    """Catmull-Rom's filter."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def resampler(out_size, in_size, scale, offset):
    """Matrices [n, out_size, in_size] that enlarge a line by `scale` and put its start at `offset`.

    The filter widens when the line shrinks, so that small glyphs do not alias.
    """
    n = scale.shape[0]
    shrink = torch.clamp(1 / scale, min=1).view(n, 1, 1)
    u = torch.arange(out_size, device=scale.device, dtype=torch.float32).view(1, -1, 1) + 0.5
    at = (u - offset.view(n, 1, 1)) / scale.view(n, 1, 1)
    margin = 8                      # taps beyond the ends count in the sum, and meet nothing
    j = torch.arange(-margin, in_size + margin, device=scale.device, dtype=torch.float32).view(1, 1, -1) + 0.5
    w = cubic((at - j) / shrink)
    return (w / w.sum(2, keepdim=True).clamp(min=0.5))[:, :, margin:-margin]


def sharpen(x, amount, reach=1):
    """Unsharp mask that stays between the darkest and the lightest neighbour: edges without halos."""
    k = 2 * reach + 1
    blurred = F.avg_pool2d(F.pad(x, [reach] * 4, mode="replicate"), k, 1)
    low = -F.max_pool2d(-x, k, 1, reach)
    high = F.max_pool2d(x, k, 1, reach)
    return torch.minimum(torch.maximum(x + amount * (x - blurred), low), high)


def enlarge(bitmaps, device):
    """The font's bitmaps at twice their size, alpha multiplied in, with edges as sharp as they were."""
    n, size = len(bitmaps), bitmaps.shape[1]
    up = resampler(BANK, size, torch.tensor([BANK / size], device=device), torch.zeros(1, device=device))[0]
    bank = torch.empty(n, 4, BANK, BANK, dtype=torch.float16, device=device)
    for i in range(0, n, 64):
        x = torch.from_numpy(bitmaps[i:i + 64]).to(device).permute(0, 3, 1, 2).float() / 255
        x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
        x = (up @ x @ up.T).clamp(0, 1)
        x = sharpen(x, 0.7)
        x[:, :3] = torch.minimum(x[:, :3], x[:, 3:])
        bank[i:i + 64] = x.half()
    return bank


def pack(batch):
    """Scenes as arrays: per glyph its number (-1: none), size, x, y; and the background's number."""
    items = np.zeros((len(batch), max(len(s.items) for s in batch), 4), np.float32)
    items[:, :] = -1, scenes.SMALL, 0, 0
    for b, scene in enumerate(batch):
        for k, it in enumerate(scene.items):
            items[b, k] = it.glyph, it.size, it.x, it.y
    return items, np.array([s.background for s in batch], np.int64)


class Painter:
    def __init__(self, bitmaps, device, size=scenes.PICTURE):
        self.device, self.size = device, size
        self.bank = enlarge(bitmaps, device)
        top, bottom = torch.tensor(list(scenes.BACKGROUNDS.values()), device=device).float().unbind(1)
        y = ((torch.arange(size, device=device) + 0.5) / size).view(1, 1, -1, 1)
        self.backgrounds = torch.lerp(top[:, :, None, None], bottom[:, :, None, None], y) / 255

    def glyph(self, items):
        """One glyph each as [n, 4, size, size], alpha multiplied in."""
        number, width, x, y = items.to(self.device).unbind(1)
        s = self.size / scenes.PICTURE
        scale = width * s / BANK
        across = resampler(self.size, BANK, scale, (x - width / 2) * s).to(self.bank.dtype)
        down = resampler(self.size, BANK, scale, (y - width / 2) * s).to(self.bank.dtype)
        g = self.bank[number.long().clamp(min=0)]
        g = down[:, None] @ g @ across[:, None].transpose(2, 3)
        return g.float().clamp(0, 1) * (number >= 0).view(-1, 1, 1, 1)

    def paint(self, items, background):
        """Pictures [n, 3, size, size] in [-1, 1] from what pack() returns (as tensors)."""
        picture = self.backgrounds[background.to(self.device)].expand(-1, -1, -1, self.size)
        for k in range(items.shape[1]):
            g = self.glyph(items[:, k])
            picture = picture * (1 - g[:, 3:]) + torch.minimum(g[:, :3], g[:, 3:])
        return picture.clamp(0, 1) * 2 - 1

    def __call__(self, batch):
        items, background = pack(batch)
        return self.paint(torch.from_numpy(items), torch.from_numpy(background))
