"""Everything that only a GPU can say, measured in ten minutes.

    python -m tests.benchmarks.gpu --out gpu-results                  all parts, on a machine with CUDA
    python -m tests.benchmarks.gpu --only speed,levers --seconds 300  two of them
    python -m tests.benchmarks.gpu --only kill                        up to 12 minutes, not among the others
    python -m tests.benchmarks.gpu --device cpu                       tries the script out, with small sizes
    python -m tests.pretend_cuda tests.benchmarks.gpu --sizes small   the same, on the pretend device

Writes gpu.json and gpu.md after each part. Parts run in processes of their own (parts.py), so a part that fails, hangs
or breaks its CUDA context does not lose the others. Needs Linux.
"""
