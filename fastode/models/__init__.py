"""Models that contain an ODE solve, and the baselines to compare them with."""

from fastode.models.autoencode import AutoencODE
from fastode.models.autoencoder import Autoencoder
from fastode.models.base import ImageModel, ModelOutput, load_model
from fastode.models.vae import VAE

__all__ = ["VAE", "AutoencODE", "Autoencoder", "ImageModel", "ModelOutput", "load_model"]
