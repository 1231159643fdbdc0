"""How CUDA's kernels differ from the CPU's: launches, arithmetic, memory formats, and kernels that only CUDA has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.pretend_cuda.placement import device_index, is_on_device, place

if TYPE_CHECKING:
    from tests.pretend_cuda.device import PretendCuda
    from tests.pretend_cuda.rules import Operation

# --- launches ---

# Besides views: they change shapes only, allocate memory, or copy a number to the host.
WITHOUT_KERNEL = {
    *"alias detach detach_ lift lift_fresh set_ resize_ squeeze_ unsqueeze_ transpose_ t_ _unsafe_view".split(),
    *"_reshape_alias empty empty_like empty_strided new_empty new_empty_strided is_same_size".split(),
    *"_has_compatible_shallow_copy_type _local_scalar_dense".split(),
}
# How many tensors fit into one launch of an operation on several lists of them (MultiTensorApply.cuh).
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


def launch_count(operation: Operation) -> int:
    """0 for an operation without a kernel; few for one that works on lists of tensors (foreach); 1 for any other."""
    if operation.func.is_view or operation.name in WITHOUT_KERNEL:
        return 0
    if not operation.name.startswith(("_foreach", "_fused")):
        return 1
    sizes = [len(arg) for arg in operation.args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], Tensor)]
    return -(-max(sizes, default=1) // TENSORS_PER_LAUNCH[min(max(len(sizes), 1), 5)])


# --- arithmetic ---

MATRIX_PRODUCTS = {*"mm addmm bmm baddbmm addbmm mv addmv dot vdot addr _addmm_activation".split()}
CONVOLUTIONS = {*"convolution convolution_backward".split()}
DTYPE_NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def product_arithmetic(operation: Operation) -> str | None:
    """The arithmetic of a product, by its dtype and PyTorch's settings; None for another operation. Raises RuntimeError
    for products of integers, which CUDA does not have."""
    if operation.name not in MATRIX_PRODUCTS | CONVOLUTIONS:
        return None
    dtype = operation.tensors[0].dtype
    if dtype not in DTYPE_NAMES:
        raise RuntimeError(f"\"{operation.name}_cuda\" not implemented for '{dtype}'")
    if dtype != torch.float32:
        return DTYPE_NAMES[dtype]
    setting = "conv" if operation.name in CONVOLUTIONS else "matmul"
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", setting) == "tf32" else "fp32"


# --- memory formats ---

# The arguments that kernels of CUDA take in contiguous format only.
CONTIGUOUS_ONLY = {"native_group_norm": (0,), "native_group_norm_backward": (0, 1)}
CONVOLUTION_INPUTS = {"convolution": (0, 1), "convolution_backward": (0, 1, 2)}


def make_contiguous(cuda: PretendCuda, operation: Operation) -> None:
    """Replace the inputs that CUDA would copy, and record each. So the layout of results is as on CUDA."""
    name = operation.name
    if name in CONTIGUOUS_ONLY:
        change_layout(cuda, operation, CONTIGUOUS_ONLY[name], torch.contiguous_format)
    elif name in CONVOLUTION_INPUTS:
        positions = CONVOLUTION_INPUTS[name]
        if any(is_channels_last(operation.args[position]) for position in positions[-2:]):
            change_layout(cuda, operation, positions, torch.channels_last)


def change_layout(
    cuda: PretendCuda, operation: Operation, positions: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    args: list[Any] = list(operation.args)
    for position in positions:
        x = args[position]
        if not x.is_contiguous(memory_format=memory_format):
            cuda.record_layout_copy(operation.name, x)
            with cuda.unobserved():
                args[position] = place(x.contiguous(memory_format=memory_format), device_index(x))
    operation.args = tuple(args)


def is_channels_last(x: Tensor) -> bool:
    """And not contiguous too, as images with one channel are."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# --- functions whose C++ code looks at the device ---

ONE_HOT, GROUP_NORM = F.one_hot, F.group_norm


def one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """On CUDA it does not read the labels if the number of classes is given."""
    if not is_on_device(labels):
        return ONE_HOT(labels, num_classes)
    if num_classes == -1:
        num_classes = int(labels.max()) + 1
    return (labels[..., None] == torch.arange(num_classes, device=labels.device)).long()


def group_norm(cuda: PretendCuda, x: Tensor, num_groups: int, *parameters: Any, **options: Any) -> Tensor:
    """On CUDA it is fp32 in autocast, and its input is made contiguous where autograd sees it."""
    if is_on_device(x):
        if torch.is_autocast_enabled("cpu"):
            x = x.float()
        if not x.is_contiguous():
            cuda.record_layout_copy("group_norm", x)
            x = x.contiguous()
            cuda.record.launches["clone"] -= 1  # counted as a layout copy
    return GROUP_NORM(x, num_groups, *parameters, **options)


# --- kernels of SyncBatchNorm, which have no CPU version ---


def per_channel(x: Tensor) -> list[int]:
    """All dimensions but that of the channels."""
    return [dim for dim in range(x.dim()) if dim != 1]


def expand_channels(values_C: Tensor, x: Tensor) -> Tensor:
    return values_C.view(1, -1, *(1,) * (x.dim() - 2))


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.float(), per_channel(x), correction=0)
    return mean, (variance + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """mean, invstd: (processes, C)."""
    shares, total = (counts / counts.sum())[:, None], counts.sum()
    common_mean = (mean * shares).sum(0)
    variance = ((invstd**-2 - eps + (mean - common_mean) ** 2) * shares).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(common_mean, momentum)
        running_var.lerp_(variance * total / (total - 1), momentum)
    return common_mean, (variance + eps).rsqrt()


def batch_norm_elemt(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    mean, scale, bias = (expand_channels(values, x) for values in (mean, invstd * weight, bias))
    return ((x.float() - mean) * scale + bias).to(x.dtype)


def batch_norm_backward_reduce(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, *needs: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sum_grad = grad.float().sum(per_channel(x))
    sum_product = (grad.float() * (x.float() - expand_channels(mean, x))).sum(per_channel(x))
    return sum_grad, sum_product, sum_product * invstd, sum_grad.clone()


def batch_norm_backward_elemt(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sum_grad: Tensor,
    sum_product: Tensor,
    count: Tensor,
) -> Tensor:
    mean_grad, mean_product = sum_grad / count.sum(), sum_product / count.sum()
    scale, shift = (expand_channels(values, x) for values in (invstd * weight, mean_product * invstd**2))
    centred = x.float() - expand_channels(mean, x)
    return ((grad.float() - expand_channels(mean_grad, x) - centred * shift) * scale).to(x.dtype)


SYNC_BATCH_NORM = (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
)


def as_one_kernel(cuda: PretendCuda, kernel: Any) -> Any:
    """The kernel as one launch, with results on the device of its first argument."""

    def launch(x: Tensor, *args: Any) -> Any:
        cuda.record_launches(kernel.__name__)
        with cuda.unobserved():
            result = kernel(x, *args)
        for y in result if isinstance(result, tuple) else (result,):
            place(y, device_index(x))
        return result

    return launch
