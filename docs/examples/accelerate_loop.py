"""Accelerate: quantize, tune, save, resume, export."""

from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from pvopt import UniformGrid, quantize_, subspace_pv_ste
from pvopt.formats import save

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
ROWS = torch.arange(8 * 32).view(8, 32) % 61  # in place of your data


def train(folder: Path, steps: int):
    torch.manual_seed(0)  # all processes alike, or weights.broadcast_() after prepare
    model = LlamaForCausalLM(CONFIG)  # in place of your trained model
    weights = quantize_(model, UniformGrid(bits=4, group_size=16, symmetric=True))
    optimizer = subspace_pv_ste(torch.optim.AdamW(model.parameters(), lr=5e-3), weights)
    accelerator = Accelerator(cpu=True)
    loader = torch.utils.data.DataLoader(ROWS, batch_size=8)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    saved = folder / "state"
    first = 0
    if saved.exists():  # codes and values are in the optimizer's state
        accelerator.load_state(str(saved))
        first = int((folder / "step").read_text())
    losses = []
    for _ in range(first, steps):
        for ids in loader:
            optimizer.zero_grad()
            loss = prepared(input_ids=ids, labels=ids).loss
            accelerator.backward(loss)
            optimizer.step()
            losses.append(float(loss))
    accelerator.save_state(str(saved))
    (folder / "step").write_text(str(steps))
    return model, weights, losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4)  # interrupted here
    model, weights, losses = train(folder, 8)
    save(folder / "export", model, weights, format="compressed-tensors")
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/accelerate"))[2])
