from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import ContextParallelConfig
from test_gap_dit import FLOW_CONFIG, TINY_CONFIG, make_inputs, make_model


NUM_RANKS = 2


@torch.no_grad()
def run_rank(rank: int, folder: str):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=NUM_RANKS)
    # diffusers counts accelerators to choose a device, and a machine without one has none.
    torch.accelerator.device_count = lambda: 1
    for config in (TINY_CONFIG, FLOW_CONFIG):
        model = make_model(config)
        inputs = {**make_inputs(model), "frame_mask": torch.arange(5) < torch.tensor([[5], [3]])}
        expected = model(**inputs)
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=NUM_RANKS))
        seen = []
        model.transformer_blocks[-1].register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        for value, expected_value in zip(model(**inputs).to_tuple(), expected.to_tuple(), strict=True):
            torch.testing.assert_close(value, expected_value, rtol=1e-4, atol=1e-5)
        assert seen[0].shape[2] == 16 // NUM_RANKS
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_that_share_the_tokens_compute_what_one_does(tmp_path):
    # Ulysses only: ring attention needs a kernel that returns its log-sum-exp, which CPUs have none of.
    mp.spawn(run_rank, (str(tmp_path),), nprocs=NUM_RANKS)
