"""Prints the losses, and the norms of their gradients, that trl's own code computes from the arrays of `test_rl_estimators.py`.

    pip install trl        # in an environment of its own that has jax and torch; 1.16.0 gave the numbers of the tests
    PYTHONPATH=.:tests JAX_ENABLE_X64=1 python -m trl_numbers

The method of the trainer that computes a loss is called on a trainer without a model: the log-probabilities are given.
"""

import collections
import types

import numpy as np
import torch
import trl
from trl import GRPOTrainer

from apr_jax.rl.estimators import NAMED
from test_rl_estimators import LENGTHS, TRL, A, by_completion


def trainer(name: str, kl: float, logprob: torch.Tensor) -> types.SimpleNamespace:
    """What `GRPOTrainer._compute_loss` reads of its trainer."""
    options, estimator = TRL[name], NAMED[name]
    one = types.SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x)
    arguments = types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
    return types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, torch.zeros_like(logprob), None),
        importance_sampling_level=options["level"], loss_type=options["kind"], max_completion_length=options["most"],
        epsilon_low=estimator.clip_low, epsilon_high=estimator.clip_high, beta=kl, args=arguments, accelerator=one,
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=True,
        vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        model=types.SimpleNamespace(training=True), _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
    )  # fmt: skip


def main() -> None:
    print(f"trl {trl.__version__}")
    for name in TRL:
        for kl in (0.0, 0.04):
            new, old, reference, engine = (torch.tensor(np.array(x, np.float64)) for x in by_completion(name))
            new.requires_grad_()
            mask = torch.tensor(np.arange(4) < LENGTHS[:, None]).double()
            ids = torch.zeros(mask.shape, dtype=torch.int64)
            given = dict(
                prompt_ids=ids, prompt_mask=mask, completion_ids=ids, completion_mask=mask, advantages=torch.tensor(A),
                old_per_token_logps=old, ref_per_token_logps=reference, num_items_in_batch=mask.sum(),
                importance_sampling_ratio=torch.clamp(torch.exp(old - engine), max=2.0),
            )  # fmt: skip
            loss = GRPOTrainer._compute_loss(trainer(name, kl, new), None, given)
            loss.backward()
            print(f'("{name}", {kl}): ({loss.item():.9g}, {new.grad.norm().item():.9g}),')


if __name__ == "__main__":
    main()
