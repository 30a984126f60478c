"""The estimate of FLOPs from token counts, against torch's own counter of matrix products."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlaif.models.cost import Meter
from rlaif.models.shared_base import REFERENCE, SharedBase


@pytest.mark.parametrize("role", [REFERENCE, "policy"])
def test_flops_are_within_a_tenth_of_what_torch_counts(role: str) -> None:
    base = SharedBase.load("smollm2-135m", dtype="float32")
    base.add_adapter("policy")
    ids, meter = torch.arange(100, 196).view(2, 48), Meter()
    with (
        FlopCounterMode(display=False) as torchs,
        meter.on(base),
        base.role(role),
        torch.set_grad_enabled(role == "policy"),
    ):
        logits = base.logits_at(base.hidden(ids, torch.ones_like(ids))[:, 24:])
        if role == "policy":
            logits.logsumexp(-1).sum().backward()
    print(f"{role}: estimated {meter.flops:.4g}, counted {torchs.get_total_flops():.4g}")
    assert meter.flops == pytest.approx(torchs.get_total_flops(), rel=0.1)
