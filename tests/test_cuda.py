"""What is a card's alone: the native module, generators, graphs and streams. All else runs in ops/test_places.py."""

from __future__ import annotations

import pytest
import torch

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.runtime import native


def test_module_imports_where_it_was_built():
    if native.cuda is None:
        pytest.skip(native.cuda_reason())
    info = native.cuda.build_info()
    assert info["version"] == aigc_fast.__version__
    assert "80" in info["architectures"]
    assert native.cuda.reparameterize_workspace(3, 100) == 0
    assert native.cuda.reparameterize_workspace(3, 5000) == 9


@pytest.mark.gpu
class TestGenerators:
    def test_cuda_generator_is_refused_on_the_cpu(self):
        with pytest.raises(RuntimeError, match="generator: got one of device cuda"):
            AF.randn(3, generator=torch.Generator("cuda"))

    def test_cuda_graphs_draw_anew_at_every_replay(self):
        input = torch.ones(1000, device="cuda")
        AF.dropout(input, 0.5)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = AF.dropout(input, 0.5)
        graph.replay()
        first = output.clone()
        graph.replay()
        assert not torch.equal(first, output)

    def test_work_goes_to_the_current_stream(self):
        input, stream = torch.ones(1 << 22, device="cuda"), torch.cuda.Stream()
        with torch.cuda.stream(stream):
            output = AF.dropout(input.mul(2), 0.5)
        stream.synchronize()
        assert set(output.unique().tolist()) == {0.0, 4.0}
