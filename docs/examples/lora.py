"""LoRA of peft beside frozen codes: quantize, train the adapters, save, resume, serve."""

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pvopt import UniformGrid, quantize_
from pvopt.formats import load, save

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
BATCH = torch.arange(8 * 32).view(8, 32) % 61  # in place of your data


def train(folder: Path, steps: int):
    base, adapter, file = folder / "base", folder / "adapter", folder / "training.pt"
    torch.manual_seed(0)
    if not base.exists():
        dense = LlamaForCausalLM(CONFIG)  # in place of your trained model
        weights = quantize_(dense, UniformGrid(bits=4, group_size=16, symmetric=True))
        save(base, dense, weights, format="compressed-tensors")  # what is served: it stays so
    quantized = load(base)
    if adapter.exists():
        model = PeftModel.from_pretrained(quantized.model, adapter, is_trainable=True)
    else:
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(quantized.model, lora)
    adapters = [p for p in model.parameters() if p.requires_grad]  # codes and values are frozen
    optimizer = torch.optim.AdamW(adapters, lr=2e-2)
    first = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    losses = []
    for _ in range(first, steps):
        optimizer.zero_grad()
        loss = model(input_ids=BATCH, labels=BATCH).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    model.save_pretrained(adapter)
    torch.save({"optimizer": optimizer.state_dict(), "step": steps}, file)
    return model, quantized.weights, losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4)  # interrupted here
    return train(folder, 8)  # a server gets the folders base and adapter


if __name__ == "__main__":
    print(main(Path("runs/lora"))[2])
