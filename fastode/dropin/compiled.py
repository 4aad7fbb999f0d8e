"""The functions under ``torch.compile``: outside of its graphs. Imported only while torch compiles."""

from __future__ import annotations

import torch._dynamo

from fastode.dropin.adjoint import odeint_adjoint
from fastode.dropin.dense import odeint_dense
from fastode.dropin.event import odeint_event
from fastode.dropin.odeint import odeint

_REASON = "only fields from fastode.capture are solved inside a graph, by fastode.solve"
OUTSIDE = {
    function.__name__: torch._dynamo.disable(function, reason=_REASON)
    for function in (odeint, odeint_adjoint, odeint_dense, odeint_event)
}
