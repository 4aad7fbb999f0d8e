"""The distribution that a VAE samples from."""

import torch

from fastode.models import VAE

SMALL = {"image_size": 8, "code_size": 4, "width": 4}


def test_samples_have_the_moments_of_the_posterior():
    model = VAE(**SMALL)
    model.decoder = torch.nn.Identity()
    x = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        mean, log_var = model.posterior(x)
        samples = model.outputs(x.expand(20_000, -1, -1, -1)).logits
    torch.testing.assert_close(samples.mean(0), mean[0], rtol=0, atol=0.05)
    torch.testing.assert_close(samples.std(0), (0.5 * log_var[0]).exp(), rtol=0.05, atol=0)


def test_extreme_variances_stay_finite():
    model = VAE(**SMALL)
    with torch.no_grad():
        model.encoder.linear.bias[4:] = 1e6
    output = model.outputs(torch.rand(2, 1, 8, 8))
    assert output.logits.isfinite().all()
    assert output.kl.isfinite().all()


def test_the_divergence_is_in_float32_under_autocast():
    model = VAE(**SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.outputs(torch.rand(2, 1, 8, 8))
    assert output.kl.dtype == output.codes.dtype == torch.float32
