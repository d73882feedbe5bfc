"""Lightning: quantize, tune, save, resume, export."""

from pathlib import Path

import lightning
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pvopt import UniformGrid, quantize_, subspace_pv_ste
from pvopt.formats import save

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
ROWS = torch.arange(8 * 32).view(8, 32) % 61  # in place of your data


class Quantized(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = LlamaForCausalLM(CONFIG)  # in place of your trained model
        self.weights = quantize_(self.model, UniformGrid(bits=4, group_size=16, symmetric=True))
        self.losses: list[float] = []

    def training_step(self, ids: torch.Tensor, number: int) -> torch.Tensor:
        loss = self.model(input_ids=ids, labels=ids).loss
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        base = torch.optim.AdamW(self.model.parameters(), lr=5e-3)
        return subspace_pv_ste(base, self.weights)


def train(folder: Path, steps: int):
    module = Quantized()
    trainer = lightning.Trainer(
        max_epochs=steps,  # one step each
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    saved = folder / "last.ckpt"  # codes and values are in the optimizer's state
    loader = torch.utils.data.DataLoader(ROWS, batch_size=8)
    trainer.fit(module, loader, ckpt_path=str(saved) if saved.exists() else None)
    trainer.save_checkpoint(saved)
    return module.model, module.weights, module.losses


def main(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    train(folder, 4)  # interrupted here
    model, weights, losses = train(folder, 8)
    save(folder / "export", model, weights, format="compressed-tensors")
    return model, weights, losses


if __name__ == "__main__":
    print(main(Path("runs/lightning"))[2])
