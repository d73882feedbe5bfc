"""A loop of your own, the model under torch.compile: quantize, tune, save, resume, export."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pvopt import UniformGrid, quantize_, subspace_pv_ste
from pvopt.formats import save

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
BATCH = torch.arange(8 * 32).view(8, 32) % 61  # in place of your data


def train(folder: Path, steps: int, *, backend: str = "inductor"):
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)  # in place of your trained model
    weights = quantize_(model, UniformGrid(bits=4, group_size=16, symmetric=True))
    optimizer = subspace_pv_ste(torch.optim.AdamW(model.parameters(), lr=5e-3), weights)
    first, file = 0, folder / "training.pt"
    if file.exists():  # codes and values are in the optimizer's state
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    compiled = torch.compile(model, backend=backend)
    losses = []
    for _ in range(first, steps):
        optimizer.zero_grad()
        loss = compiled(input_ids=BATCH, labels=BATCH).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": steps}
    torch.save(state, file)
    return model, weights, losses


def main(folder: Path, **options: str):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4, **options)  # interrupted here
    model, weights, losses = train(folder, 8, **options)
    save(folder / "export", model, weights, format="compressed-tensors")
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/plain"))[2])
