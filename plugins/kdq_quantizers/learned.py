"""Scales that are trained with the model."""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdq_quantizers.calibrated import Calibrated
from kdq_quantizers.ranges import LEAST_SCALE, no_data

if TYPE_CHECKING:
    from kdq_core.api import Place


class LearnedScale(Calibrated, abc.ABC):
    """A scale that is trained, as the logarithm of its value.

    The gradient to the logarithm is the gradient to the scale times `gain() / scale`. So plain gradient descent moves
    the scale as if the scale were the parameter and its gradient multiplied by `gain()`. AdamW takes steps relative to
    the scale. The gradient is cut to -1 .. 1, because one clipped value counts as much as hundreds of rounded ones.
    Therefore no step of plain gradient descent changes a scale by more than the learning rate, relative to the scale.

    Args:
        place: where it stands.
        offset: train the zero point of an affine place too, as a share of the levels.

    Attributes:
        learned: log s, `[]` or `[C]` with `place.axis`. With `offset` it is `[2]`: log s and the zero point's share.
        bound: the largest integer minus the calibrated zero point.
        values: how many values share a scale; for activations, those of one sample. The buffer `sharing` saves it.
    """

    decay = 0.0
    sharing: Tensor

    def __init__(self, place: Place, *, offset: bool = False) -> None:
        super().__init__(place)
        self.offset = offset and not place.symmetric
        self.learned = nn.Parameter(torch.zeros(2 if self.offset else self.shape))
        self.register_buffer("sharing", torch.ones((), dtype=torch.int64))
        self.bound, self.values = place.qmax, 1  # on the host, so that no step waits for a GPU

    @abc.abstractmethod
    def gain(self) -> float:
        """Return the factor for the gradient to the scale."""

    def start(self, scale: Tensor, zero: Tensor) -> None:
        """Start from the calibrated grid."""
        log = scale.clamp(min=LEAST_SCALE).log()
        self.learned.data.copy_(torch.stack((log, zero / self._levels)) if self.offset else log)
        self._note_sizes()

    def observe(self, x: Tensor) -> None:
        """Calibrate with `x`, and note how many values share a scale."""
        values = math.prod(x.shape[1:] if self.place.role == "activation" else x.shape)
        self.sharing.fill_(max(1, values // math.prod(self.shape)))
        super().observe(x)

    def scale_and_zero(self) -> tuple[Tensor, Tensor]:
        """Return the scale and zero point in force, with gradients.

        Raises:
            StageError: no data was observed.
        """
        if not self.ready:
            raise no_data(self.place)
        log = self.learned[0] if self.offset else self.learned
        scale = log.detach().exp()
        if not torch.is_grad_enabled():
            return scale, self._zero(scale, 1.0)
        gain = self.gain()
        steady = _Steadied.apply(log, self.decay)  # type: ignore[no-untyped-call]
        return scale + (gain / scale) * (steady - log.detach()), self._zero(scale, gain)

    @property
    def _levels(self) -> int:
        return self.place.qmax - self.place.qmin

    def _zero(self, scale: Tensor, gain: float) -> Tensor:
        if not self.offset:
            return self.zero
        shift = self.learned[1]
        zero: Tensor = (shift.detach() * self._levels).round().clamp(self.place.qmin, self.place.qmax)
        if not torch.is_grad_enabled():
            return zero
        steady: Tensor = _Steadied.apply(shift, 0.0)  # type: ignore[no-untyped-call]
        return zero + gain / (scale * scale * self._levels) * (steady - shift.detach())

    def _note_sizes(self) -> None:
        """Set Q and N; Q is at least 1, for ranges that lie below zero."""
        self.values = int(self.sharing)
        self.bound = max(1, self.place.qmax - (0 if self.place.role == "weight" else int(self.zero)))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_sizes()


class LearnedStep(LearnedScale):
    """LSQ and LSQ+: rounding and clipping move the scale."""

    def gain(self) -> float:
        """1 / sqrt(N * Q)."""
        return float((self.values * self.bound) ** -0.5)


class LearnedClip(LearnedScale):
    """PACT: only clipped values move the scale.

    Args:
        place: where it stands.
        decay: L2 decay of the clipping value: the penalty is decay / 2 * clip^2.
    """

    clip_only = True

    def __init__(self, place: Place, decay: float) -> None:
        super().__init__(place)
        self.decay = decay

    def gain(self) -> float:
        """1 / Q^2: then gradient descent moves the clipping value Q * s as if it were the parameter."""
        return float(self.bound) ** -2


class _Steadied(torch.autograd.Function):
    """The identity; it cuts the gradient to -1 .. 1 and then adds `decay`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: float) -> Tensor:
        ctx.decay = decay
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return grads[0].clamp(-1, 1) + ctx.decay, None
