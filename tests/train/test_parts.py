"""The parts of a run: settings, batches and the packages that they need."""

import pytest
import torch

from fastode.models import VAE, AutoencODE, Autoencoder
from fastode.train.config import DEFAULT_EPOCHS, TrainConfig, build_model
from fastode.train.data import load_data
from fastode.train.extra import PACKAGES, require_train
from fastode.train.loader import ImageModule
from fastode.train.metrics import clustering_accuracy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "gan"}, "unknown model 'gan': expected one of autoencode, ae, vae"),
        ({"loss": "l1"}, "unknown loss 'l1'"),
        ({"precision": "64"}, "unknown precision '64'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"early_stop": 0}, "early_stop must be at least 1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"rtol": float("nan")}, "rtol must be positive"),
        ({"beta": -0.1}, "beta must not be negative"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize("text", [None, "", "{", "[1]", '{"lr": -1}', '{"colour": "red"}'])
def test_settings_that_cannot_be_read_name_the_file(text, tmp_path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read the settings of a run from .*config\.json"):
        TrainConfig.load(tmp_path)


def test_what_may_change_when_a_run_is_resumed():
    config = TrainConfig(lr=1e-3)
    assert config.changed(epochs=99, lr=1e-3, precision="bf16-mixed").n_epochs == 99
    with pytest.raises(ValueError, match=r"the run to resume has lr = 0\.001, not 0\.002"):
        config.changed(lr=2e-3)


def test_models_are_built_from_settings():
    config = TrainConfig(code_size=5, state_dim=4, hidden=6, width=4, start="encoding", horizon=2.0, rtol=0.1)
    model = build_model(config, (3, 9, 13))
    assert isinstance(model, AutoencODE)
    assert model.image_shape == (3, 9, 13)
    assert (model.code_size, model.state_dim, model.field.hidden, model.horizon) == (5, 4, 6, 2.0)
    assert (model.config["start"], model.solver["rtol"]) == ("encoding", 0.1)
    for name, cls in (("ae", Autoencoder), ("vae", VAE)):
        assert type(build_model(TrainConfig(model=name, code_size=5, width=4), (3, 9, 13))) is cls


@pytest.mark.filterwarnings("error")
def test_clusters_of_a_single_code():
    assert clustering_accuracy(torch.randn(1, 3), torch.tensor([4])) == 1.0


def test_settings_are_kept_in_a_file(tmp_path):
    config = TrainConfig(model="vae", data="mnist", data_dir="somewhere", lr=1e-4, hidden=3)
    config.save(tmp_path)
    assert TrainConfig.load(tmp_path) == config
    assert (TrainConfig().n_epochs, config.n_epochs, TrainConfig(epochs=3).n_epochs) == (
        DEFAULT_EPOCHS["digits"],
        DEFAULT_EPOCHS["mnist"],
        3,
    )


def test_batches_hold_every_image_once_in_an_order_of_seed_and_epoch():
    data = load_data("digits", limit=100)

    def epoch(seed: int, number: int) -> list[torch.Tensor]:
        loader = ImageModule(data, 16, seed).train_dataloader()
        loader.sampler.set_epoch(number)
        return list(loader)

    first, again, later, other = epoch(0, 0), epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert [len(x) for x in first] == [16] * 4 + [8]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for batches in (later, other):
        assert not torch.equal(batches[0], first[0])
    for batches in (first, later, other):
        rows = torch.cat(batches).flatten(1)
        expected = data.train.pixels.flatten(1) / 255
        assert sorted(rows.tolist()) == sorted(expected.tolist())
    validation = torch.cat(list(ImageModule(data, 3, 0).val_dataloader()))
    assert torch.equal(validation, data.val.pixels / 255)


def test_missing_packages_are_named(monkeypatch):
    require_train()
    monkeypatch.setattr("fastode.train.extra.find_spec", lambda name: None if name in ("PIL", "sklearn") else object())
    with pytest.raises(
        ImportError, match=r"missing pillow, scikit-learn: install with  pip install 'fastode\[train\]'"
    ):
        require_train()
    require_train(*(name for name in PACKAGES if name not in ("PIL", "sklearn")))
