"""Calibrate one block of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pvopt.parametrizations.representation import Representation
from pvopt.parametrizations.scheme import Scheme
from pvopt.starts.contract import Start
from pvopt.weights import QuantizedWeights

from .asymmetric import AsymmetricCalibration
from .capture import BlockCall
from .experts import ExpertHessians
from .fine_tuning import FineTuning
from .finished_blocks import FinishedBlocks
from .hessians import Hessians, gather_hessians
from .layer_starts import start_experts, start_matrix

__all__ = ["OneBlock"]


@dataclass(frozen=True, eq=False)
class OneBlock:
    """One block of the walk: what it is called with, and which of its weights get which scheme.

    Args:
        model: which holds the block.
        module: the block.
        calls: what it is called with besides hidden states, by batch.
        masks: ``[batches, batch, length]``, 0 for padding; None for none.
        token_weights: ``[batches, batch, length]``, by names of weights.
        chosen: schemes by names of its weights.
        asymmetric: how its targets are moved, or None.
        last: whether no block follows.
    """

    model: nn.Module
    module: nn.Module
    calls: list[BlockCall]
    masks: Tensor | None
    token_weights: dict[str, Tensor]
    chosen: dict[str, Scheme]
    asymmetric: AsymmetricCalibration | None
    last: bool

    def calibrate(
        self,
        hidden: Tensor,
        dense: Tensor | None,
        starts: Mapping[str, Start],
        fine_tuning: FineTuning | None,
        seed: int,
    ) -> tuple[dict[str, Representation], dict[str, float]]:
        """Quantize the block and overwrite its inputs by its outputs.

        Args:
            hidden: ``[batches, batch, length, width]``, behind quantized blocks.
            dense: the same in the full-precision model, for asymmetric calibration.
            starts: by names of weights.
            fine_tuning: of the continuous values, or None.
            seed: of each start and the fine-tuning.

        Returns:
            Representations and errors by names of weights.
        """
        linear = {
            name: self.model.get_submodule(name.rpartition(".")[0])
            for name, scheme in self.chosen.items()
            if not scheme.view.experts
        }
        experts = {}
        for name, scheme in self.chosen.items():
            if scheme.view.experts:
                weight = self.model.get_parameter(name)
                experts[name] = weight, scheme.view.matrix_shape(weight.shape)[1]
        outputs = torch.empty_like(hidden) if fine_tuning is not None else None
        apart = ExpertHessians(experts)
        with gather_hessians(linear) as hessians, apart if experts else nullcontext():
            self._run(hidden, dense, outputs, hessians, apart)
        representations, errors = self._start(hessians, apart, starts, seed)
        del hessians, apart
        if outputs is not None and fine_tuning is not None and representations:
            weights = QuantizedWeights(self.model, representations)
            fine_tuning.tune_(
                self.module, self.calls, hidden, outputs, weights, masks=self.masks, seed=seed
            )
        self._advance(hidden)
        return representations, errors

    def _run(
        self,
        hidden: Tensor,
        dense: Tensor | None,
        outputs: Tensor | None,
        hessians: Hessians,
        experts: ExpertHessians,
    ) -> None:
        """Run the block, not quantized yet; dense inputs are overwritten by what it returns."""
        for number, batch in enumerate(hidden):
            hessians.begin_batch(
                None if self.masks is None else self.masks[number],
                {name: own[number] for name, own in self.token_weights.items()},
            )
            if dense is not None:
                with hessians.dense_pass(batch[..., 0].numel()), experts.paused():
                    dense[number] = self.calls[number](self.module, dense[number])
            output = self.calls[number](self.module, batch)
            if outputs is not None:
                outputs[number] = output
                if dense is not None and self.asymmetric is not None:
                    outputs[number].lerp_(dense[number], self.asymmetric.share)
            hessians.end_batch()

    def _start(
        self,
        hessians: Hessians,
        experts: ExpertHessians,
        starts: Mapping[str, Start],
        seed: int,
    ) -> tuple[dict[str, Representation], dict[str, float]]:
        """Start every weight and write it."""
        representations: dict[str, Representation] = {}
        errors: dict[str, float] = {}
        for name, scheme in self.chosen.items():
            parameter = self.model.get_parameter(name)
            generator = torch.Generator(parameter.device).manual_seed(seed)
            try:
                if scheme.view.experts:
                    rep, own = start_experts(
                        name, parameter, scheme, starts[name], experts[name], generator
                    )
                    errors |= own
                else:
                    target, shift = None, hessians.shift(name)
                    if self.asymmetric is not None and shift is not None:
                        target = self.asymmetric.target(
                            parameter, scheme.view, hessians[name], shift
                        )
                    rep, errors[name] = start_matrix(
                        parameter, scheme, starts[name], hessians[name], generator, target
                    )
            except (TypeError, ValueError) as error:
                raise type(error)(f"cannot quantize {name!r}: {error}") from error
            representations[name] = rep
            parameter.copy_(rep.decode())
        return representations, errors

    def load(
        self, finished: FinishedBlocks, name: str, hidden: Tensor, dense: Tensor | None
    ) -> tuple[dict[str, Representation], dict[str, float]]:
        """Take the block's weights from the folder and overwrite its inputs by its outputs.

        Args:
            finished: the folder.
            name: of the block there.
            hidden: see :meth:`calibrate`.
            dense: likewise.
        """
        if dense is not None and not self.last:
            for call, batch in zip(self.calls, dense, strict=True):
                batch.copy_(call(self.module, batch))
        wanted = {n: (s, tuple(self.model.get_parameter(n).shape)) for n, s in self.chosen.items()}
        stored, errors = finished.load(name, wanted)
        representations: dict[str, Representation] = {}
        for weight in self.chosen:
            parameter = self.model.get_parameter(weight)
            representations[weight] = stored[weight].to(parameter.device)
            parameter.copy_(representations[weight].decode())
        self._advance(hidden)
        return representations, errors

    def _advance(self, hidden: Tensor) -> None:
        if self.last:  # nobody needs the outputs of the last block
            return
        for call, batch in zip(self.calls, hidden, strict=True):
            batch.copy_(call.last(self.module, batch))
