"""Every name that the backend uses is one of the products', and the simulated GPU offers no others."""

from __future__ import annotations

import pytest
from fake_gpu import Cache, Config, Context, Engine

from runtime.backends.trt import MODULES

NAMES = {
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_dtype get_tensor_shape get_tensor_profile_shape "
    "create_execution_context",
    "IExecutionContext": "set_input_shape set_tensor_address set_device_memory update_device_memory_size_for_shapes "
    "execute_async_v3",
    "ILogger": "log Severity",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
}
ONLY_RTX = {
    "ICudaEngine": "create_runtime_config",
    "IRuntimeConfig": "set_execution_context_allocation_strategy dynamic_shapes_kernel_specialization_strategy "
    "cuda_graph_strategy create_runtime_cache set_runtime_cache",
    "IRuntimeCache": "serialize deserialize",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE",
}


@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"])
def test_the_names_that_are_used_exist_in_the_product(product: str) -> None:
    """The fakes would hide a misspelling."""
    module = pytest.importorskip(MODULES[product], reason=f"{product} is not installed")
    for names in (NAMES, ONLY_RTX) if product == "tensorrt-rtx" else (NAMES,):
        for owner, attributes in names.items():
            missing = [name for name in attributes.split() if not hasattr(getattr(module, owner), name)]
            assert missing == [], owner


def test_the_fakes_offer_nothing_that_the_products_lack() -> None:
    for fake, owner in ((Engine, "ICudaEngine"), (Context, "IExecutionContext"), (Cache, "IRuntimeCache")):
        known = f"{NAMES.get(owner, '')} {ONLY_RTX.get(owner, '')}".split()
        assert all(hasattr(fake, name) for name in known)
    assert all(hasattr(Config, name) for name in ONLY_RTX["IRuntimeConfig"].split())
