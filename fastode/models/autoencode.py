"""AutoencODE: an autoencoder whose code sets the weights of an ODE, one set per image."""

from typing import Any

import torch
from torch import Tensor, nn

from fastode.fields import ControlledField, _check_size
from fastode.models.base import ImageModel, ModelOutput
from fastode.solve import solve

STARTS = ("learned", "encoding")
WEIGHT_GAIN = 0.5
BIAS_GAIN = 1.0
_BASE_SIZE = 16
"""Size of code, state and hidden layer at which the learning rate of the defaults was chosen."""


class AutoencODE(ImageModel):
    """Image -> code -> controls -> ODE -> image, after Chalvidal, Ricci, VanRullen, Serre (arXiv 2006.09545).

    For image u_i, with encoder E, linear map L, decoder D and a start x0 shared by all images:

        z_i = E(u_i)              code
        (W_i, b_i) = L(z_i)       controls: the weights of the vector field of this image
        x' = act(W_i x + b_i),    x(0) = x0,  0 <= t <= T
        v_i = D(x(T))             reconstruction

    Since x0 does not depend on the image, information reaches v_i only through the controls.

    From the paper: the weights of the ODE are computed from the sample (theta(0) = gamma(x0)) and, in the open-loop
    case built here, stay as they are during the solve; an encoder gives them, and a decoder reads the end state.
    Our choices, not the paper's: every size and layer, the shared start as a trained parameter, ``start="encoding"``,
    the field with a hidden layer, tanh, T = 4, dopri5 and its tolerances, and the initialisation: W_i has entries of
    standard deviation 0.5 / sqrt(state_dim) and b_i of 1 for codes of unit variance, so that at first the flow is
    close to a translation by tanh(b_i) and the model behaves like a plain autoencoder.

    The solve runs in float32 (float64 for a float64 model), also under autocast: error control needs the digits.

    Args:
        channels: 1 or 3.
        image_size: side of the images, or (height, width); at least 8.
        code_size: length of the code z.
        state_dim: length of the ODE state; None takes ``code_size``, which makes the decoder the same as that of
            `Autoencoder` and `VAE` with this code size.
        hidden: None for the affine field, or the hidden units of `fastode.fields.ControlledField`.
        activation: of the field, one of `fastode.fields.ACTIVATIONS`.
        horizon: T > 0, in the (unitless) time of the ODE.
        start: "learned", one trained x0 for all images; "encoding", x0 is a linear map of the code.
        width: channels of the first convolution; they double at every halving, up to 8 times.
        method, rtol, atol: as in `fastode.solve`.
        solver: further arguments of `fastode.solve` by name (plain values), e.g. ``{"gradient": "adjoint"}``.

    Raises:
        ValueError: arguments outside these ranges, or (on call) wrong shapes.
        fastode.SolveError: a solve failed (see ``on_failure`` of `fastode.solve`).
    """

    name = "autoencode"

    def __init__(
        self,
        channels: int = 1,
        image_size: int | tuple[int, int] = 28,
        code_size: int = 16,
        state_dim: int | None = None,
        hidden: int | None = None,
        activation: str = "tanh",
        horizon: float = 4.0,
        start: str = "learned",
        width: int = 16,
        method: str = "dopri5",
        rtol: float = 1e-2,
        atol: float = 1e-3,
        solver: dict[str, Any] | None = None,
    ) -> None:
        state_dim = code_size if state_dim is None else _check_size("state_dim", state_dim)
        if start not in STARTS:
            raise ValueError(f"unknown start {start!r}: expected one of {', '.join(STARTS)}")
        if not horizon > 0:
            raise ValueError(f"horizon must be positive, got {horizon!r}")
        config: dict[str, Any] = {
            "channels": channels,
            "code_size": code_size,
            "state_dim": state_dim,
            "hidden": hidden,
            "activation": activation,
            "horizon": float(horizon),
            "start": start,
            "width": width,
            "method": method,
            "rtol": rtol,
            "atol": atol,
            "solver": dict(solver or {}),
        }
        super().__init__(
            config,
            channels=channels,
            image_size=image_size,
            code_size=code_size,
            width=width,
            encoder_features=code_size,
            decoder_features=state_dim,
        )
        self.state_dim = state_dim
        self.horizon = float(horizon)
        self.solver = {"method": method, "rtol": rtol, "atol": atol, **config["solver"]}
        self.field = ControlledField(state_dim, hidden, activation)
        self.to_controls = nn.Linear(code_size, self.field.n_controls)
        self.to_start: nn.Linear | None = nn.Linear(code_size, state_dim) if start == "encoding" else None
        if start == "learned":
            self.start = nn.Parameter(torch.randn(state_dim))
        self._init_controls()

    @torch.no_grad()
    def _init_controls(self) -> None:
        """Initialise the code-to-controls map so that each weight block starts with the gain of its fan-in.

        The sizes enter as fixed factors behind the map, relative to ``_BASE_SIZE``, and not in its weights: then a step
        of Adam changes the field by the same part of itself for every size (Yang, Hu et al., arXiv 2203.03466).
        """
        weight = self.to_controls.weight
        nn.init.normal_(weight, std=_BASE_SIZE**-0.5)
        nn.init.zeros_(self.to_controls.bias)
        scale = torch.full_like(weight[:, 0], (_BASE_SIZE / self.code_size) ** 0.5)
        start, factor = self.field.unpack(weight.T), self.field.unpack(scale[None])
        start.weight.mul_(WEIGHT_GAIN * _BASE_SIZE**-0.5)
        factor.weight.mul_((_BASE_SIZE / self.state_dim) ** 0.5)
        start.bias.mul_(BIAS_GAIN)
        if start.out_weight is not None and start.out_bias is not None and factor.out_weight is not None:
            start.out_weight.mul_(_BASE_SIZE**-0.5)
            factor.out_weight.mul_((_BASE_SIZE / start.out_weight.shape[2]) ** 0.5)
            start.out_bias.mul_(BIAS_GAIN)
        self.register_buffer("control_scale", scale, persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        self.check_images(x)
        codes: Tensor = self.encoder(x)
        return codes

    def controls(self, codes: Tensor) -> Tensor:
        """Controls (n, n_controls), the weights of `field`, of ``codes`` (n, code_size)."""
        self.check_codes(codes)
        controls: Tensor = self.to_controls(codes) * self.control_scale
        return controls

    def initial_state(self, codes: Tensor) -> Tensor:
        """States (n, state_dim) at time 0."""
        if self.to_start is not None:
            y0: Tensor = self.to_start(codes)
            return y0
        return self.start.expand(codes.shape[0], -1)

    def solve(self, y0: Tensor, controls: Tensor, t: Tensor | None = None) -> Any:
        """The `fastode.Solution` at times ``t`` (T,), by default 0 and the horizon."""
        with torch.autocast(controls.device.type, enabled=False):
            dtype = torch.promote_types(controls.dtype, torch.float32)
            y0, controls = y0.to(dtype), controls.to(dtype)
            if t is None:
                t = torch.tensor([0.0, self.horizon], dtype=dtype, device=y0.device)
            return solve(self.field, y0.contiguous(), t, controls=controls, **self.solver)

    def outputs(self, x: Tensor) -> ModelOutput:
        codes = self.encode(x)
        solution = self.solve(self.initial_state(codes), self.controls(codes))
        return ModelOutput(self.decoder(solution.ys[-1]), codes, stats=solution.stats)

    def decode_logits(self, codes: Tensor) -> Tensor:
        controls = self.controls(codes)
        logits: Tensor = self.decoder(self.solve(self.initial_state(codes), controls).ys[-1])
        return logits

    def trajectory(self, x: Tensor, t: Tensor) -> Tensor:
        """States (T, n, state_dim) at times ``t`` (T,), increasing within [0, horizon], for the images ``x``."""
        if t.ndim != 1 or t.shape[0] == 0:
            raise ValueError(f"expected times of shape (T,) with T >= 1, got {tuple(t.shape)}")
        if not bool((t[0] >= 0) & (t[-1] <= self.horizon) & (t.diff() > 0).all()):
            raise ValueError(f"times must increase within [0, {self.horizon}], got {t.tolist()}")
        codes = self.encode(x)
        y0, controls = self.initial_state(codes), self.controls(codes)
        # The solve starts at its first output time: put 0 in front where it was not asked for.
        from_zero = bool(t[0] == 0)
        times = t if from_zero else torch.cat([t.new_zeros(1), t])
        if times.shape[0] == 1:
            return y0.unsqueeze(0)
        ys: Tensor = self.solve(y0, controls, times.to(y0)).ys
        return ys if from_zero else ys[1:]

    def decode_state(self, y: Tensor) -> Tensor:
        """Images, values in [0, 1], of states ``y`` (n, state_dim): what the model would show if it stopped there."""
        return torch.sigmoid(self.decoder(y))
