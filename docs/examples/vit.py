"""A small vision transformer: quantize, tune, save, resume, export."""

from pathlib import Path

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from pvopt import UniformGrid, quantize_, subspace_pv_ste
from pvopt.formats import save

CONFIG = ViTConfig(
    image_size=16, patch_size=4, num_channels=1, num_labels=4,
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
)  # fmt: skip
FORMATS = {
    "*.patch_embeddings.*": UniformGrid(bits=4),
    "*": UniformGrid(bits=2, group_size=16),
}


def data():
    """Return stripes of four directions, in place of your images."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    waves = [torch.sin(w) for w in (rows, columns, rows + columns, rows - columns)]
    noise = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(32) % 4
    return torch.stack(waves)[labels][:, None] + noise / 2, labels


def train(folder: Path, steps: int):
    torch.manual_seed(0)
    model = ViTForImageClassification(CONFIG)  # in place of your trained model
    weights = quantize_(model, FORMATS, exclude=["classifier"])
    optimizer = subspace_pv_ste(torch.optim.AdamW(model.parameters(), lr=3e-3), weights)
    first, file = 0, folder / "training.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    images, labels = data()
    losses = []
    for _ in range(first, steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}
    torch.save(state, file)
    return model, weights, losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4)  # interrupted here
    model, weights, losses = train(folder, 8)
    save(folder / "export", model, weights)  # read by load(folder / "export", a new model)
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/vit"))[2])
