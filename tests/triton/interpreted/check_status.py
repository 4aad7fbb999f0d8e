"""Every way a sample can end, by generated kernels."""

import pytest
import torch

from tests import sick_samples
from tests.triton.interpreted.tools import launched


@pytest.mark.parametrize(("launch", "dtype"), [("scalarised", torch.float32), ("tiled", torch.float64)])
def test_every_way_to_end(launch, dtype):
    options = {"backend": "triton", **sick_samples.SHORT}
    with launched(launch):
        error = sick_samples.check_error(sick_samples.check(dtype, **options), dtype, **options)
    assert "last step" not in str(error)
