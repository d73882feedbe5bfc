"""A network without any other package: quantize, tune, save, resume, export."""

from pathlib import Path

import torch
from torch import nn

from pvopt import SharedValues, quantize_, subspace_pv_ste
from pvopt.formats import save


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def train(folder: Path, steps: int):
    model = make_model()  # in place of your trained model
    weights = quantize_(model, SharedValues(num_values=4))
    optimizer = subspace_pv_ste(torch.optim.Adam(model.parameters(), lr=3e-3), weights)
    first, file = 0, folder / "training.pt"
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    inputs = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    targets = inputs[:, :1] * inputs[:, 1:2]
    losses = []
    for _ in range(first, steps):
        optimizer.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}
    torch.save(state, file)
    return model, weights, losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 15)  # interrupted here
    model, weights, losses = train(folder, 30)
    save(folder / "export", model, weights)  # read by load(folder / "export", make_model())
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/mlp"))[2])
