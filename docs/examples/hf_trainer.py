"""The Trainer of transformers: quantize, tune, save, resume, export."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from pvopt import UniformGrid, quantize_, subspace_pv_ste
from pvopt.formats import save

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
ROWS = torch.arange(8 * 32).view(8, 32) % 61  # in place of your data
DATA = [{"input_ids": row, "labels": row} for row in ROWS]


def train(folder: Path, steps: int):
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)  # in place of your trained model
    weights = quantize_(model, UniformGrid(bits=4, group_size=16, symmetric=True))
    optimizer = subspace_pv_ste(torch.optim.AdamW(model.parameters(), lr=5e-3), weights)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    options = TrainingArguments(
        str(folder),
        max_steps=steps,
        save_steps=4,
        logging_steps=1,
        per_device_train_batch_size=8,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model, options, train_dataset=DATA, optimizers=(optimizer, rate))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, weights, losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4)  # interrupted here
    model, weights, losses = train(folder, 8)
    save(folder / "export", model, weights, format="compressed-tensors")
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/trainer"))[2])
