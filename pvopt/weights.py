"""The quantized weights of a model: representations that are bound to its parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pvopt.engine.agreement import WeightsChangedError, check_decoded, differs
from pvopt.engine.base_contract import check_parameter
from pvopt.engine.broadcast import broadcast_
from pvopt.engine.dense_start import DenseStart
from pvopt.engine.placement import WHOLE, Placement
from pvopt.engine.placing import placement_of
from pvopt.engine.refit import refitted
from pvopt.engine.writing import write_decoded_
from pvopt.parametrizations.options import FitOptions
from pvopt.parametrizations.representation import Representation
from pvopt.selection.coverage import Coverage

__all__ = ["QuantizedWeights"]


class QuantizedWeights(Mapping[str, Representation]):
    """The representations of a model's quantized weights, by parameter name.

    Weights are bound by name, so parameter objects may be replaced. Where ``fully_shard`` has
    shared out the rows of a weight over processes, the representation is of the rows of this
    process from the first use on (:meth:`placement`); :meth:`gathered` returns whole ones.

    Codes and values are the truth, the model shows what they decode to. Whoever writes into the
    model says which of the two is to follow: :meth:`refit_`, :meth:`restore`, :meth:`write_` or
    :meth:`broadcast_`; a step of the optimizer or a save would raise
    :class:`pvopt.WeightsChangedError` otherwise.

    Args:
        model: the module that holds the dense weights.
        representations: one representation for each quantized parameter, by any of its names.
        reasons: why other parameters are dense, by name, for :meth:`coverage`.
        dense: weights that representations were fitted to, by name, for an optimizer's latent
            weights to begin at; kept, not copied, until one takes them.

    Raises:
        ValueError: if a name is no parameter of the model, two names are those of one parameter, or
            shapes differ.

    Example:
        >>> from torch import nn
        >>> from pvopt import UniformGrid, quantize_
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> weights = quantize_(model, {"0": UniformGrid(bits=2)})
        >>> list(weights), len(weights.parameters()), len(weights.other_parameters())
        (['0.weight'], 1, 3)
    """

    def __init__(
        self,
        model: nn.Module,
        representations: Mapping[str, Representation],
        *,
        reasons: Mapping[str, str] | None = None,
        dense: Mapping[str, Tensor] | None = None,
        placements: Mapping[str, Placement] | None = None,
    ) -> None:
        self.model = model
        self._representations = dict(representations)
        self._reasons = dict(reasons or {})
        named = dict(model.named_parameters(remove_duplicate=False))
        owners: dict[int, str] = {}
        for name, rep in self._representations.items():
            if name not in named:
                raise ValueError(f"representations names {name!r}, which is no parameter of model")
            other = owners.setdefault(id(named[name]), name)
            if other != name:
                raise ValueError(f"representations names one parameter twice, {other!r}, {name!r}")
            place = (placements or {}).get(name, WHOLE)
            if tuple(named[name].shape) != place.whole_shape(rep):
                raise ValueError(
                    f"representation of {name!r} must have shape {list(named[name].shape)}, "
                    f"got {list(rep.shape)}"
                )
        for name, weight in (dense or {}).items():
            rep = self._representations.get(name)
            if rep is None or weight.shape != rep.shape:
                raise ValueError(
                    f"dense must hold weights of the shapes of representations, got one of "
                    f"{list(weight.shape)} for {name!r}"
                )
        self._placements: dict[str, Placement] = dict(placements or {})
        self._starts = {n: DenseStart.of(w, self[n]) for n, w in (dense or {}).items()}

    def __getitem__(self, name: str) -> Representation:
        return self._representations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._representations)

    def __len__(self) -> int:
        return len(self._representations)

    def parameter(self, name: str) -> nn.Parameter:
        """Return the model's present parameter of that name.

        Raises:
            WeightsChangedError: if the model no longer has one.
        """
        try:
            return self.model.get_parameter(name)
        except AttributeError as error:
            raise WeightsChangedError(
                f"the model has no parameter {name!r} any more, which is quantized: something has "
                "replaced it, as pruning, weight norm, adapters and removed layers do. Do that "
                "before quantize_, or undo it (prune.remove), then weights.refit_()"
            ) from error

    def placement(self, name: str) -> Placement:
        """Return which rows of a weight this process holds; its representation is of these.

        Args:
            name: of the parameter.

        Raises:
            TypeError: if the weight is sharded in a way that its representation cannot be.
            WeightsChangedError: if the representation is of other rows.
        """
        rep, known = self[name], self._placements.get(name, WHOLE)
        found = placement_of(name, self.parameter(name), rep, known)
        if found is not known:
            self._placements[name] = found
            if name in self._starts:
                self._starts[name].move_(rep, found.taken)
        return found

    def entries(self, name: str) -> Tensor:
        """Return the entries of a weight that its representation is of, to be read and written.

        Args:
            name: of the parameter.

        Returns:
            ``[*shape]`` of the representation, in the parameter's dtype; it shares its memory.
        """
        return self.placement(name).entries(self.parameter(name))

    def start(self, name: str) -> DenseStart | None:
        """Return the dense weight that a latent weight is to begin at, if it was kept."""
        return self._starts.get(name)

    def forget_dense(self) -> None:
        """Free the dense weights that were kept for an optimizer."""
        for start in self._starts.values():
            start.forget()

    def parameters(self) -> list[nn.Parameter]:
        """Return the quantized weights' parameters, in order."""
        return [self.parameter(name) for name in self]

    def other_parameters(self) -> list[nn.Parameter]:
        """Return the model's trainable parameters that are not quantized."""
        quantized = {id(p) for p in self.parameters()}
        return [p for p in self.model.parameters() if id(p) not in quantized and p.requires_grad]

    @torch.no_grad()
    def write_(self) -> None:
        """Write every decoded weight into the model.

        Raises:
            ValueError: if a code does not exist, as somebody may have edited them; nothing is
                written then.
        """
        for name, rep in self.items():
            try:
                rep.check_codes()
            except ValueError as error:
                raise ValueError(f"cannot write {name!r}: {error}") from error
        for name, rep in self.items():
            write_decoded_(rep, [self.entries(name)])

    def check(self) -> None:
        """Compare every weight of the model with what its codes and values decode to.

        Raises:
            WeightsChangedError: naming those that differ, and what can be done.
        """
        check_decoded((name, self.entries(name), rep) for name, rep in self.items())

    @torch.no_grad()
    def refit_(self, *, options: FitOptions | None = None, seed: int = 0) -> dict[str, float]:
        """Take the codes and values nearest to what the model holds, and write these.

        For weights that were averaged, clamped, pruned or loaded. Weights that are as they were
        written stay. An optimizer starts again at the new codes: latent weights and the moments of
        values with them.

        Args:
            options: how hard a fit tries.
            seed: of the random draws.

        Returns:
            Relative squared error of each weight that was refitted, by name.

        Raises:
            ValueError: for a weight that is not finite, and for one that is sharded; nothing is
                changed then.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from pvopt import UniformGrid, quantize_
            >>> model = nn.Linear(8, 4)
            >>> weights = quantize_(model, UniformGrid(bits=2))
            >>> with torch.no_grad():
            ...     _ = model.weight.clamp_(-0.1, 0.1)
            >>> list(weights.refit_())
            ['weight']
            >>> weights.check()
        """
        found: dict[str, tuple[Representation, float]] = {}
        for name, rep in self.items():
            placement, entries = self.placement(name), self.entries(name)
            check_parameter(name, self.parameter(name), placement.whole_shape(rep))
            if not differs(entries, rep):
                continue
            self._check_whole("refit_", name)
            generator = torch.Generator(entries.device).manual_seed(seed)
            try:
                found[name] = refitted(rep, entries, options=options, generator=generator)
            except ValueError as error:
                raise ValueError(f"cannot quantize {name!r}: {error}") from error
        for name, (new, _) in found.items():
            rep = self[name].copy_(new)
            write_decoded_(rep, [self.entries(name)])
        return {name: error for name, (_, error) in found.items()}

    def snapshot(self) -> dict[str, dict[str, Tensor]]:
        """Return copies of all codes and values, as :meth:`restore` takes them.

        Plain dictionaries of tensors by name, a few bits per weight.
        """
        return {name: {k: t.clone() for k, t in rep.tensors()} for name, rep in self.items()}

    @torch.no_grad()
    def restore(self, snapshot: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go back to earlier codes and values, and write the decoded weights into the model.

        An optimizer starts again at them; to go on exactly as then, load its state dict instead.

        Args:
            snapshot: of :meth:`snapshot`, of the same weights.

        Raises:
            ValueError: if it is of other weights or settings; nothing is changed then.

        Example:
            >>> from torch import nn
            >>> from pvopt import UniformGrid, quantize_
            >>> weights = quantize_(nn.Linear(8, 4), UniformGrid(bits=2))
            >>> best = weights.snapshot()
            >>> weights.restore(best)
        """
        shapes = {
            name: {key: (tuple(t.shape), t.dtype) for key, t in found.items()}
            for name, found in snapshot.items()
        }
        for name in {**self._representations, **shapes}:
            rep = self._representations.get(name)
            own = rep and {key: (tuple(t.shape), t.dtype) for key, t in rep.tensors()}
            if rep is None or own != shapes.get(name):
                raise ValueError(
                    f"snapshot must hold codes and values of the same weights, got other ones for "
                    f"{name!r}"
                )
            rep.check_codes({key: snapshot[name][f"codes.{key}"] for key in rep.codes})
        for name, rep in self.items():
            for key, tensor in rep.tensors():
                tensor.copy_(snapshot[name][key])
        self.write_()

    @torch.no_grad()
    def broadcast_(self, source: int = 0, *, group: Any = None) -> None:
        """Let every process have the codes and values of one, and write the decoded weights.

        ``DistributedDataParallel`` lets all processes begin with the parameters of the first;
        codes and values are not parameters. Call it where processes may have quantized different
        weights, before the first step. Dense weights that were kept are forgotten.

        Args:
            source: rank of the process whose codes and values all are to have.
            group: of processes; None for the default one.

        Raises:
            RuntimeError: without a process group.
            ValueError: in every process, if weights or settings differ, or are sharded; nothing is
                changed then.
        """
        for name in self:
            self._check_whole("broadcast_", name)
        broadcast_(self, source, group)
        self.forget_dense()  # the processes' own, and codes must not part again
        self.write_()

    def _check_whole(self, action: str, name: str) -> None:
        if self.placement(name).channel is not None:
            raise ValueError(
                f"{action} needs whole weights, but {name!r} is sharded: call it before fully_shard"
            )

    @torch.no_grad()
    def gathered(self) -> dict[str, Representation]:
        """Return representations of all rows of the weights, on the CPU.

        To save or export what a sharded model has learnt: ``QuantizedWeights(model, found)`` binds
        them to a model that is not sharded, and ``write_()`` decodes them into it. Every process
        has to call this; codes and values are sent, weights are not.

        Returns:
            Copies by name, of the shapes that the weights have as a whole.

        Example:
            >>> import torch
            >>> from pvopt import UniformGrid, quantize_
            >>> model = torch.nn.Linear(8, 4)
            >>> weights = quantize_(model, UniformGrid(bits=2))
            >>> torch.equal(weights.gathered()["weight"].decode(), model.weight)
            True
        """
        return {name: self.placement(name).gathered(rep) for name, rep in self.items()}

    def coverage(self) -> Coverage:
        """Return what of the model is quantized and what is not, and the size of the whole."""
        return Coverage.of(self.model, self, self._reasons)

    def bits_per_weight(self, *, value_bits: int | None = None) -> float:
        """Return the storage of all quantized weights per weight.

        See :meth:`coverage` for that of the whole model.

        Args:
            value_bits: bits of one value, 0 for codes alone; None counts values at their present
                dtype.
        """
        parameters = self.parameters()
        sizes = [parameter.numel() for parameter in parameters]
        bits = [
            rep.bits_per_weight(value_bits=value_bits, shape=tuple(parameter.shape))
            for rep, parameter in zip(self.values(), parameters, strict=True)
        ]
        return sum(b * n for b, n in zip(bits, sizes, strict=True)) / max(1, sum(sizes))
