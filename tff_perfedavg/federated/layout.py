"""Choice of the form of client data, by the model and the cohort's size.

It says how many users a TFF client stands for, and depends on these alone, not on the
machine, so that a run repeats anywhere to the last bit that the machine's arithmetic
repeats. docs/scaling.md has the measurements behind the numbers below.
"""

from __future__ import annotations

import math

from tff_perfedavg.data.user_store import UserStore
from tff_perfedavg.federated.client_data import BlockClientData, StoreClientData
from tff_perfedavg.federated.client_forms import (
    AUTO,
    BLOCKS_LOOP,
    BLOCKS_VECTORIZED,
    USERS,
)
from tff_perfedavg.models.model import Model

# Up to this many weights, the cost of an operation is in starting it, and training
# users side by side starts fewer.
_TINY_MODEL_WEIGHTS = 5_000
# Large enough to hide TFF's cost per client, small enough to share among cores.
_LOOP_BLOCK, _VECTORIZED_BLOCK = 32, 64


def choose_client_data(
    store: UserStore,
    model: Model,
    cohort_size: int,
    form: str = AUTO,
    block_size: int = 0,
    *,
    with_steps: bool = False,
) -> StoreClientData:
    """Returns the form of client data for cohorts of a size.

    Blocks give the same mean over users as one user per client, faster. Choose `users`
    for an aggregator that must see each user's update by itself (differential privacy,
    robust or secure aggregation).

    Args:
      store: the users.
      model: what is trained or evaluated.
      cohort_size: users per round.
      form: `users` (one per client), `blocks_loop`, `blocks_vectorized` or `auto`.
      block_size: the most users per client; 0 to choose.
      with_steps: whether clients' values say how many local steps each user does.
    """
    num_weights = sum(math.prod(w.shape) for w in model.init(0))
    if form == AUTO:
        tiny = num_weights <= _TINY_MODEL_WEIGHTS
        form = BLOCKS_VECTORIZED if tiny else BLOCKS_LOOP
    if form == USERS:
        return StoreClientData(store, model, with_steps=with_steps)
    layout = "vectorized" if form == BLOCKS_VECTORIZED else "loop"
    if not block_size:
        # At least two blocks, for two cores.
        most = _VECTORIZED_BLOCK if layout == "vectorized" else _LOOP_BLOCK
        block_size = min(most, math.ceil(cohort_size / 2))
    return BlockClientData(store, model, block_size, layout, with_steps=with_steps)
