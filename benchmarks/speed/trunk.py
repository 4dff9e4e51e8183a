"""The cost of the V path: the encoder with it and without it, both through ONNX Runtime.

Both are exported from the bundle's graph, in fp16. Without the V path the encoder is CLIP's own tower: the exporter
drops unused nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.speed.timing import alternate, per_second, ratio
from export.artifacts.to_onnx import OPSET, quiet_exporter
from export.model.graph import SemClipGraph
from runtime.telemetry import import_onnxruntime

Provider = str | tuple[str, Mapping[str, Any]]
VANILLA, DUAL = "vanilla", "dual path"


class _Trunk(nn.Module):
    """Frames, uint8 [B, height, width], to [B, C]: the last class token; with `value`, V's mean is added to it."""

    def __init__(self, graph: SemClipGraph, *, value: bool) -> None:
        super().__init__()
        self.whole, self.value = graph, value  # an attribute "graph" is torch.fx's own

    def forward(self, frames: Tensor) -> Tensor:
        levels = self.whole.encode(frames)
        answer = levels.cls[-1].float()
        if self.value:
            answer = answer + torch.stack(levels.value).float().mean((0, 2))
        return answer


def export_trunks(graph: SemClipGraph, folder: Path) -> dict[str, Path]:
    """Write both encoders to ONNX files in `folder`."""
    files = {}
    frames = torch.zeros((2, *graph.input_size), dtype=torch.uint8)
    for name, value in ((VANILLA, False), (DUAL, True)):
        files[name] = folder / f"{name.replace(' ', '_')}.onnx"
        with quiet_exporter():
            torch.onnx.export(
                _Trunk(graph, value=value),
                (frames,),
                files[name],
                input_names=["frames"],
                output_names=["answer"],
                dynamic_shapes={"frames": {0: torch.export.Dim("batch", min=1)}},
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    return files


def value_path_cost(
    files: Mapping[str, Path],
    provider: Provider,
    frames: NDArray[np.uint8],
    batches: Sequence[int],
    *,
    count: Callable[[int], int],
    rounds: int,
    in_flight: int = 1,
) -> list[dict[str, Any]]:
    """A row for each batch size: frames/s of both encoders, and the ratio of their times, `times_vanilla`.

    files: of `export_trunks`. count: batches in one timed run, by batch size; `in_flight` of them at a time.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = {
        name: onnxruntime.InferenceSession(str(file), options, providers=[provider], enable_fallback=0)
        for name, file in files.items()
    }
    rows = []
    with ThreadPoolExecutor(in_flight) as pool:

        def answer(session: Any, batch: int) -> None:
            call = partial(session.run, None, {"frames": frames[:batch]})
            for future in [pool.submit(call) for _ in range(count(batch))]:
                future.result()

        for batch in batches:
            seconds = alternate({n: partial(answer, s, batch) for n, s in sessions.items()}, rounds)
            rows.append(
                {
                    "batch": batch,
                    **{
                        f"{n} frames_per_second": per_second(batch * count(batch), found)
                        for n, found in seconds.items()
                    },
                    "times_vanilla": ratio(seconds[DUAL], seconds[VANILLA]),
                }
            )
    return rows
