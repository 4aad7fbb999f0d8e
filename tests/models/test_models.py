"""What all image models share: shapes, equal sizes, gradients, and saving and loading."""

import os
import pickle

import pytest
import torch

from fastode.models import VAE, AutoencODE, Autoencoder, ImageModel, load_model
from fastode.models.base import MODEL_FILE, build

MODELS = [AutoencODE, Autoencoder, VAE]
SIZES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 9, 13), (3, 17, 8)]
SMALL = {"image_size": 8, "code_size": 3, "width": 4}


def images(n: int, shape: tuple[int, ...] = (1, 8, 8), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, *shape, dtype=dtype)


@pytest.mark.parametrize("shape", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("cls", MODELS)
def test_shapes_and_ranges(cls, shape):
    model = cls(channels=shape[0], image_size=shape[1:], code_size=5, width=4).eval()
    x = images(3, shape)
    codes = model.encode(x)
    assert codes.shape == (3, 5)
    for y in (model(x), model.decode(codes)):
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1
    output = model.outputs(x)
    assert output.logits.shape == x.shape
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(output.reconstruction, model.decode(codes))
    assert (output.stats is not None) == (cls is AutoencODE)
    assert (output.kl is not None) == (cls is VAE)


@pytest.mark.parametrize("cls", MODELS)
def test_gradients_reach_every_parameter(cls):
    model = cls(**SMALL)
    x = images(6)
    output = model.outputs(x)
    loss = (output.reconstruction - x).square().sum() + (0.0 if output.kl is None else output.kl.sum())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("cls", MODELS)
def test_a_reconstruction_does_not_depend_on_the_batch(cls):
    # float64: convolutions of other batch sizes may round differently, and a step size may turn on the last bit.
    model = cls(**SMALL).double().eval()
    x = images(5, dtype=torch.float64)
    x[3] *= 0.01  # a batch mate of another kind
    together = model(x)
    for i in range(5):
        torch.testing.assert_close(model(x[i : i + 1])[0], together[i], rtol=1e-9, atol=1e-11)


def test_encoders_and_decoders_are_of_equal_size():
    ode, ae, vae = (cls(image_size=28, code_size=16) for cls in MODELS)

    def shapes(module):
        return [tuple(p.shape) for p in module.parameters()]

    assert shapes(ode.encoder) == shapes(ae.encoder)
    assert shapes(ode.encoder.conv) == shapes(vae.encoder.conv)
    assert vae.encoder.linear.weight.shape == (32, ae.encoder.linear.weight.shape[1])  # mean and variance
    assert shapes(ode.decoder) == shapes(ae.decoder) == shapes(vae.decoder)
    assert ae.n_parameters() == sum(p.numel() for p in ae.parameters())
    assert ode.n_parameters() - ae.n_parameters() == 17 * (16 * 16 + 16) + 16  # code -> controls, and the start


@pytest.mark.parametrize("cls", MODELS)
def test_save_and_load_give_the_same_outputs(cls, tmp_path):
    extra = {"hidden": 4, "start": "encoding", "solver": {"max_steps": 500}} if cls is AutoencODE else {}
    model = cls(channels=3, image_size=(9, 13), code_size=3, width=4, **extra).eval()
    x = images(3, (3, 9, 13))
    file = tmp_path / "a.pt"
    model.save(file)
    content = torch.load(file, weights_only=True)  # plain data: nothing to execute
    assert content["model"] == cls.name
    for again in (cls.load(file), cls.load(str(file)), load_model(file)):
        assert type(again) is cls
        assert not again.training
        assert again.config == model.config
        assert torch.equal(again(x), model(x))
    model.save(tmp_path / MODEL_FILE)
    assert torch.equal(load_model(tmp_path)(x), model(x))


def test_loading_another_kind_of_model_is_refused(tmp_path):
    VAE(**SMALL).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt holds the model VAE, not AutoencODE"):
        AutoencODE.load(tmp_path / "a.pt")
    assert isinstance(ImageModel.load(tmp_path / "a.pt"), VAE)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pt"):
        load_model(tmp_path / "no.pt")
    with pytest.raises(FileNotFoundError, match=MODEL_FILE):
        load_model(tmp_path)


def _damaged(name):
    model = Autoencoder(**SMALL)
    good = {**model.description(), "state_dict": model.state_dict()}
    return {
        "no state_dict": model.description(),
        "other content": {"state_dict": {}},
        "a list": [1, 2],
        "unknown format": {**good, "format": "fastode.model/99"},
        "unknown model": {**good, "model": "gan"},
        "unknown argument": {**good, "config": {**model.config, "depth": 3}},
        "bad argument": {**good, "config": {**model.config, "width": 0}},
        "other size": {**good, "config": {**model.config, "width": 8}},
        "missing weight": {**good, "state_dict": dict(list(model.state_dict().items())[:-1])},
    }[name]


@pytest.mark.parametrize(
    "what",
    [
        "no state_dict",
        "other content",
        "a list",
        "unknown format",
        "unknown model",
        "unknown argument",
        "bad argument",
        "other size",
        "missing weight",
    ],
)
def test_files_that_are_no_models_are_refused_by_name(what, tmp_path):
    torch.save(_damaged(what), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is not a fastode model"):
        load_model(tmp_path / "a.pt")


def test_a_truncated_file_is_refused_by_name(tmp_path):
    file = tmp_path / "a.pt"
    Autoencoder(**SMALL).save(file)
    whole = file.read_bytes()
    for raw in (whole[: len(whole) // 2], b"", b"some text"):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=r"a\.pt is damaged or not a fastode model"):
            load_model(file)


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_in_a_model_file_is_not_executed(tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "a.pt"
    content = {"format": "fastode.model/1", "model": "ae", "config": {}, "state_dict": Evil(f"touch {trace}")}
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"a\.pt is damaged or not a fastode model"):
        load_model(file)
    assert not trace.exists()
    file.write_bytes(pickle.dumps(Evil(f"touch {trace}"), protocol=2))
    with pytest.raises(ValueError, match=r"a\.pt is damaged or not a fastode model"):
        load_model(file)
    assert not trace.exists()


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"image_size": 7}, "image_size must be at least 8 on both sides, got 7"),
        ({"image_size": (28, 4)}, "image_size must be at least 8"),
        ({"code_size": 0}, "code_size must be a positive integer, got 0"),
        ({"width": 1.5}, "width must be a positive integer, got 1.5"),
    ],
)
def test_arguments_are_checked(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@pytest.mark.parametrize("cls", MODELS)
def test_inputs_are_checked(cls):
    model = cls(**SMALL)
    with pytest.raises(ValueError, match=r"images of shape \(n, 1, 8, 8\), got \(2, 1, 8, 9\)"):
        model(torch.zeros(2, 1, 8, 9))
    with pytest.raises(ValueError, match=r"images of shape \(n, 1, 8, 8\), got \(1, 8, 8\)"):
        model.encode(torch.zeros(1, 8, 8))
    with pytest.raises(TypeError, match=r"values in \[0, 1\], got torch\.uint8"):
        model(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"codes of shape \(n, 3\), got \(2, 4\)"):
        model.decode(torch.zeros(2, 4))


def test_description_makes_an_untrained_model_of_the_same_form():
    model = AutoencODE(**SMALL, hidden=2, horizon=2)
    again = build(model.description())
    assert repr(again) == repr(model)
    assert again.config == model.config
