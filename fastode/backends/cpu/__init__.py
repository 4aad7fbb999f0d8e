"""Backend ``cpu``: a field's program and the whole solve in one compiled call, forward and backward."""
