"""Drives the engine's scheduler without a model and prints what each step would compute.

Three sequences arrive at different times and share a budget of 48 tokens a step: running ones come
first, a long prompt is prefilled in chunks, and its decodes join the others'.
"""

from lmdeploy_c import Scheduler

scheduler = Scheduler(
    n_blocks=8, block_len=16, max_batch_size=4, max_prefill_token_num=48, session_len=128
)
arrivals = {0: (list(range(20)), 4), 1: (list(range(80)), 3), 3: (list(range(10)), 2)}

print(f"{'step':>4}  {'budget':>6}  {'sequence: history+input':<34}{'blocks':<22}waiting")
for step in range(100):
    if step in arrivals:
        token_ids, max_new_tokens = arrivals[step]
        scheduler.add(token_ids, max_new_tokens=max_new_tokens)
    plan = scheduler.schedule()
    if plan is None:
        break
    rows = zip(plan.seq_ids, plan.history_lens, plan.input_lens, strict=True)
    work = "  ".join(f"{seq_id}: {history}+{n}" for seq_id, history, n in rows)
    waiting = ", ".join(f"{seq_id} ({why})" for seq_id, why in plan.waiting) or "-"
    tables = " ".join(
        str(plan.block_ids[a:b].tolist()).replace(" ", "")
        for a, b in zip(plan.block_offsets[:-1], plan.block_offsets[1:], strict=True)
    )
    print(f"{step:>4}  {len(plan.token_ids):>6}  {work:<34}{tables:<22}{waiting}")
    # A model would compute one token for each of these rows; here every token is 7.
    for seq_id, reason in scheduler.update(plan.plan_id, [7] * len(plan.logits_rows)):
        print(f"{'':>4}  {'':>6}  {seq_id} ended: {reason}")
    scheduler.check()

print(scheduler.stats())
