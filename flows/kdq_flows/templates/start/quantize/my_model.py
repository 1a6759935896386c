"""Pictures of a bar, a cross, a ring and a disc, and a trained network that KDQ quantizes.

KDQ calls `data` and `net`, and reads the weights from `weights.safetensors`. Replace the two functions marked REPLACE
with your own, and the file with your weights:
1. `data` gives your samples and labels,
2. `net` makes your network.

`python my_model.py` trains this network for some seconds and writes its weights, as `kdq init` did.
"""

import torch
from torch import nn
from torch.nn import functional as F

SIZE, CLASSES, WEIGHTS = 16, 4, "weights.safetensors"


def data(split):
    """REPLACE: give the samples of "train", "validation" or "test".

    A map-style data set, a DataLoader, or a pair (inputs, labels) of tensors or arrays will do. Here, inputs are
    float32 `[N, 1, 16, 16]`, and labels whole numbers from 0 to 3. KDQ calibrates with "train", and measures on "test".
    """
    seed, count = {"train": (0, 1200), "validation": (1, 200), "test": (2, 400)}[split]
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=random)
    middle = SIZE / 2 + 4 * torch.rand(count, 2, 1, 1, generator=random) - 2
    rows, columns = torch.arange(SIZE).view(1, -1, 1) - middle[:, 0], torch.arange(SIZE).view(1, 1, -1) - middle[:, 1]
    far = (rows**2 + columns**2).sqrt()
    bar, other = (rows.abs() < 1.5) & (columns.abs() < 6), (columns.abs() < 1.5) & (rows.abs() < 6)
    shapes = torch.stack((bar, bar | other, (far - 5).abs() < 1.2, far < 5), 1)  # [N, 4, 16, 16]
    drawn = shapes[torch.arange(count), labels][:, None].float()
    return drawn + 0.3 * torch.randn(drawn.shape, generator=random), labels


class Net(nn.Module):
    """Two convolutions, with a residual addition, and a linear layer."""

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images):
        """Logits `[B, 4]` of images `[B, 1, 16, 16]`."""
        x = self.stem(images)
        return self.head(F.adaptive_avg_pool2d(x + self.block(x), 1).flatten(1))


def net():
    """REPLACE: make your network, without weights. It returns logits: one number for each class."""
    return Net(16)


def train():
    """Train the network for four epochs."""
    torch.manual_seed(0)
    model, (images, labels) = net(), data("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(4):
        for ids in torch.randperm(len(labels)).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[ids]), labels[ids]).backward()
            optimizer.step()
    return model.eval()


if __name__ == "__main__":
    from safetensors.torch import save_file

    save_file(train().state_dict(), WEIGHTS)
