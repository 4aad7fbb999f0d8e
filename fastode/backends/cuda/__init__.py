"""Backend ``cuda``: whole solves of fields with per-sample weight matrices by kernels written by hand."""
