"""The pretend device obeys CUDA's rules, so that the device law (test_device.py) can fail."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from rjem_cli.engine.batching import BatchSizer
from tests.pretend_cuda import PretendCuda


@pytest.fixture
def cuda():
    with PretendCuda() as device:
        yield device


def zeros(*shape, **options):
    return torch.zeros(*shape, device="cuda", **options)


# --- placement ---


def test_everything_is_restored():
    names = {
        torch: ("tensor", "Generator", "autocast"),
        torch.Tensor: ("to", "device", "numpy"),
        torch.cuda: ("Event",),
    }
    before = {(target, name): getattr(target, name) for target in names for name in names[target]}
    with PretendCuda():
        x = zeros(1)
        assert torch.cuda.is_available() and x.device == torch.device("cuda:0")
    assert before == {(target, name): getattr(target, name) for target in names for name in names[target]}
    assert not torch.cuda.is_available() and x.device.type == "cpu"
    with pytest.raises(ZeroDivisionError), PretendCuda():
        raise ZeroDivisionError
    assert not torch.cuda.is_available()


@pytest.mark.parametrize(
    "create",
    [
        lambda x: x.view(-1)[1:],
        lambda x: x + 1,
        lambda x: x.half().float(),
        lambda x: torch.stack([x, x]),
        lambda x: torch.zeros_like(x),
        lambda x: x.new_full((2,), 1.0),
        lambda x: torch.arange(4, device=x.device),
        lambda x: torch.tensor([1, 2], device="cuda:0"),
        lambda x: x.new_tensor([1.0]),
        lambda x: nn.functional.one_hot(x.long()[0], 3),
        lambda x: nn.functional.pad(x[None, None], (1,) * 4, mode="reflect"),
        lambda x: copy.deepcopy(x),
        lambda x: nn.Linear(2, 2).to(x.device)(x),
        lambda x: torch.randn(2, generator=torch.Generator("cuda").manual_seed(0), device="cuda"),
        lambda x: torch.ones(2).cuda(),
    ],
)
def test_results_are_on_the_device(cuda, create):
    x = create(zeros(2, 2))
    assert x.device == torch.device("cuda:0") and x.is_cuda and not x.is_cpu
    assert x.cpu().device.type == "cpu" and x.is_cuda


def test_gradients_and_the_state_of_optimizers_are_on_the_device(cuda):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to("cuda")
    host_x = torch.rand(5, 3, requires_grad=True)
    for optimizer in (torch.optim.Adam(model.parameters()), torch.optim.SGD(model.parameters(), momentum=0.9, lr=1)):
        first, _ = model(host_x.to("cuda")).chunk(2, dim=1)  # the gradient of the other is zero
        first.sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with cuda.recording() as record:
            optimizer.step()
        assert record.syncs == [] and any(name.startswith("_foreach") for name in record.launches)
        states = [x for state in optimizer.state.values() for name, x in state.items() if name != "step"]
        assert states and all(x.is_cuda for x in states)
    assert all(parameter.grad.is_cuda for parameter in model.parameters())
    assert not host_x.grad.is_cuda and host_x.grad.abs().sum() > 0


def test_the_numbers_are_those_of_the_cpu(cuda):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 2, 3))
    x = torch.rand(2, 3, 8, 8)
    expected = model(x)
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout in layouts:
        result = model.to("cuda", memory_format=layout)(x.to("cuda"))
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-5)


# --- refused ---


@pytest.mark.parametrize(
    "mix",
    [
        lambda x, host: x + host,
        lambda x, host: x @ host,
        lambda x, host: torch.cat([x, host]),
        lambda x, host: nn.functional.cross_entropy(x, host[0].long()),
        lambda x, host: torch.where(x > 0, x, host),
        lambda x, host: x.lerp_(host, 0.5),
        lambda x, host: x.index_put_((torch.tensor([0], device="cuda"),), host[:1]),
        lambda x, host: x + torch.zeros(2, 2, device="cuda:1"),
    ],
)
def test_tensors_of_two_devices(mix):
    with PretendCuda(device_count=2), pytest.raises(RuntimeError, match="found at least two devices"):
        mix(zeros(2, 2), torch.zeros(2, 2))


def test_other_uses_of_the_wrong_device(cuda):
    host_generator, device_generator = torch.Generator(), torch.Generator("cuda")
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        torch.randn(2, device="cuda", generator=host_generator)
    with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.randperm(2, generator=device_generator)
    with pytest.raises(RuntimeError, match="indices should be either on cpu"):
        torch.zeros(3)[zeros(1, dtype=torch.long)]
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        zeros(1).numpy()
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        torch.zeros(1).to("cuda:1")
    with pytest.raises(RuntimeError, match="not implemented for"):
        zeros(2, 2, dtype=torch.long) @ zeros(2, 2, dtype=torch.long)


def test_what_cuda_allows_with_numbers_from_the_host(cuda):
    x = zeros(2)
    x += torch.tensor(1.0)
    x.lerp_(zeros(2), torch.tensor(0.5))
    x[torch.tensor([0])] = 3.0
    torch._foreach_mul_([x], torch.tensor(2.0))
    assert x.tolist() == [6.0, 1.0]


# --- syncs and copies ---


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda x: x[0].item(), "item"),
        (lambda x: bool((x == 0).all()), "item"),
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x[x > 0], "mask index"),
        (lambda x: torch.unique(x), "unique"),
        (lambda x: torch.bincount(x.long()), "bincount"),
        (lambda x: x.repeat_interleave(x.long()), "repeat_interleave"),
        (lambda x: torch.equal(x, x), "equal"),
        (lambda x: x.cpu(), "device to host"),
        (lambda x: torch.zeros(3).copy_(x), "device to host"),
        (lambda x: x.copy_(torch.ones(3)), "host to device, blocking"),
        (lambda x: torch.tensor([1.0], device=x.device), "host to device, blocking"),
        (lambda x: x[torch.tensor([1])], "host to device, blocking"),
        (lambda x: torch.zeros(100_000).to("cuda", non_blocking=True), "host to device, pageable"),
        (lambda x: torch.cuda.synchronize(), "synchronize"),
        (lambda x: torch.cuda.Event().synchronize(), "synchronize"),
    ],
)
def test_a_sync_is_recorded_with_its_caller(cuda, read, kind):
    x = zeros(3)
    with cuda.recording() as record:
        read(x)
    (sync,) = record.syncs
    assert sync.kind == kind and sync.caller == f"test_pretend_cuda.py:{read.__code__.co_firstlineno}"


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x.sum() / 2 + x.amax(),
        lambda x: x.masked_fill(x > 0, 1.0),
        lambda x: torch.ones(3).to("cuda", non_blocking=True) + x,
        lambda x: torch.ones(100_000).pin_memory().to("cuda", non_blocking=True),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: nn.functional.one_hot(x.long(), 4),
        lambda x: x.repeat_interleave(2),
    ],
)
def test_other_work_does_not_sync(cuda, work):
    x = zeros(3)
    with cuda.recording() as record:
        work(x)
    assert record.syncs == []


def test_syncs_are_found_in_inference_mode(cuda):
    with torch.inference_mode(), cuda.recording() as record:
        nn.functional.linear(zeros(1, 2), zeros(1, 2)).reshape(-1).to(torch.float64).item()
    assert [sync.kind for sync in record.syncs] == ["item"] and len(record.products) == 1


def test_a_copy_to_the_host_that_does_not_block_must_be_waited_for(cuda):
    host = zeros(3).to("cpu", non_blocking=True)
    with pytest.raises(RuntimeError, match="before its copy from the device is complete"):
        host.sum()
    with pytest.raises(RuntimeError, match="before its copy from the device is complete"):
        host.numpy()
    torch.cuda.synchronize()
    assert host.sum() == 0


def test_copies_have_a_direction_and_a_size(cuda):
    zeros(4).cpu().cuda(non_blocking=True).double().to("cuda")
    fields = [(copy.direction, copy.bytes, copy.non_blocking, copy.pinned) for copy in cuda.record.copies]
    assert fields == [("d2h", 16, False, False), ("h2d", 16, True, False)]


# --- launches, arithmetic, layouts ---


def test_launches_are_counted(cuda):
    x = zeros(4, 4)
    with cuda.recording() as record:
        x.view(-1)[2:].unsqueeze(0).expand(3, -1).T.detach()
        torch.empty_like(x)
        assert record.launch_count == 0
        (x + x).mul_(2)
        torch._foreach_add_([x.clone() for _ in range(111)], 1.0)
    assert record.launches == {"add": 1, "mul_": 1, "clone": 111, "_foreach_add_": 2}


@pytest.fixture
def default_arithmetic():
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def products(record):
    return [(product.operation, product.arithmetic) for product in record.products]


def test_the_arithmetic_of_products(cuda, default_arithmetic):
    conv, x = nn.Conv2d(1, 1, 1).to("cuda"), zeros(1, 1, 2, 2)
    for matmul_tf32, cudnn_tf32 in ((False, False), (True, False), (False, True)):
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul_tf32, cudnn_tf32
        names = ["tf32" if allowed else "fp32" for allowed in (matmul_tf32, cudnn_tf32)]
        with cuda.recording() as record:
            (zeros(2, 2, requires_grad=True) @ zeros(2, 2)).sum().backward()
            conv(x).sum().backward()
        assert products(record) == [
            *[("mm", names[0])] * 2,
            ("convolution", names[1]),
            ("convolution_backward", names[1]),
        ]
    torch.set_float32_matmul_precision("high")
    with cuda.recording() as record:
        zeros(2, 2) @ zeros(2, 2)
        zeros(2, 2).double() @ zeros(2, 2).double()
        for dtype in (torch.bfloat16, torch.float16):
            with torch.autocast("cuda", dtype):
                conv(x)
    assert record.arithmetics == {"tf32", "fp64", "bf16", "fp16"}
    assert products(record)[1:] == [("mm", "fp64"), ("convolution", "bf16"), ("convolution", "fp16")]


def test_group_norm_copies_images_in_channels_last(cuda):
    norm, x = nn.GroupNorm(2, 4).to("cuda"), torch.rand(2, 4, 3, 3).to("cuda")
    for layout, copied in ((torch.contiguous_format, []), (torch.channels_last, ["group_norm"])):
        with cuda.recording() as record:
            y = norm(x.to(memory_format=layout).requires_grad_())
            assert y.is_contiguous() and [copy.operation for copy in record.layout_copies] == copied
    with cuda.recording() as record:
        torch.autograd.grad(y, norm.parameters(), torch.ones_like(y).to(memory_format=torch.channels_last))
    assert [copy.operation for copy in record.layout_copies] == ["native_group_norm_backward"]
    assert record.layout_copies[0].bytes == 4 * x.numel()


def test_a_convolution_copies_images_to_the_layout_of_its_weights(cuda):
    conv, x = nn.Conv2d(4, 4, 3).to("cuda", memory_format=torch.channels_last), zeros(2, 4, 5, 5)
    for layout, count in ((torch.contiguous_format, 1), (torch.channels_last, 0)):
        with cuda.recording() as record:
            y = conv(x.to(memory_format=layout))
        assert y.is_contiguous(memory_format=torch.channels_last) and len(record.layout_copies) == count


def test_group_norm_is_fp32_in_autocast(cuda):
    with torch.autocast("cuda", torch.bfloat16):
        assert nn.GroupNorm(1, 2).to("cuda")(zeros(1, 2, 2, 2, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_launch_can_run_out_of_memory(cuda):
    messages = []
    sizer = BatchSizer(4, messages.append)
    cuda.fail_next("mul")
    (result,) = sizer.run(lambda x: (x * 2,), zeros(6))
    assert result.shape == (6,) and sizer.max_batch_size == 2 and len(messages) == 1


def test_the_kernels_of_sync_batch_norm_are_those_of_batch_norm(cuda):
    norm, x = nn.BatchNorm2d(3).to("cuda"), torch.rand(4, 3, 2, 2).to("cuda")
    with torch.no_grad():
        norm.weight.uniform_()
    reference, reference_x = copy.deepcopy(norm), x.clone().requires_grad_()
    gradient = torch.rand_like(x)
    reference(reference_x).backward(gradient)
    mean, invstd = torch.batch_norm_stats(x, norm.eps)
    counts = torch.full((1,), 16.0, device="cuda")
    arguments = mean[None], invstd[None], norm.running_mean, norm.running_var, norm.momentum, norm.eps, counts
    mean, invstd = torch.batch_norm_gather_stats_with_counts(x, *arguments)
    y = torch.batch_norm_elemt(x, norm.weight, norm.bias, mean, invstd, norm.eps)
    weight = norm.weight.detach()
    sums = torch.batch_norm_backward_reduce(gradient, x, mean, invstd, weight, True, True, True)
    x_grad = torch.batch_norm_backward_elemt(gradient, x, mean, invstd, weight, *sums[:2], counts.int())
    expected = copy.deepcopy(reference).train()(x), reference_x.grad, reference.weight.grad, reference.bias.grad
    for value, other in zip((y, x_grad, *sums[2:]), expected, strict=True):
        torch.testing.assert_close(value.detach(), other.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, reference.running_var)


def test_each_process_group_takes_tensors_of_its_backend(cuda):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = dist.new_group(backend="nccl")
        with cuda.recording() as record:
            dist.all_reduce(zeros(2), group=group)
            dist.all_reduce(torch.zeros(2))
            assert record.syncs == []
            dist.all_reduce(zeros(2))
        assert [sync.kind for sync in record.syncs] == ["gloo"]
        with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
            dist.all_reduce(torch.zeros(2), group=group)
    finally:
        dist.destroy_process_group()
