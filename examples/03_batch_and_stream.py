"""Continuous batching: many prompts share each step, and their answers come interleaved.

Shows what one call returns, a stream of all of them at once, and requests in an event loop that
join and leave the batch while others run.
"""

import asyncio
import time

from lmdeploy_c import GenerationConfig, TurbomindEngineConfig, pipeline

PROMPTS = [f"Name one city in {country}." for country in ("France", "Japan", "Peru", "Kenya")]
CONFIG = GenerationConfig(max_new_tokens=24)

# The KV cache may be given as a size, a fraction of available memory or a number of blocks.
engine = TurbomindEngineConfig(session_len=1024, max_batch_size=16, cache_max_entry_count="256MB")

with pipeline(backend_config=engine) as pipe:
    started = time.perf_counter()
    responses = pipe(PROMPTS, CONFIG)
    seconds = time.perf_counter() - started
    n_tokens = sum(r.generate_token_len for r in responses)
    print(f"{len(responses)} answers, {n_tokens} tokens in {seconds:.1f} s")
    for prompt, response in zip(PROMPTS, responses, strict=True):
        print(f"  {prompt} -> {response.text!r} ({response.finish_reason})")

    texts = [""] * len(PROMPTS)
    for piece in pipe.stream_infer(PROMPTS, gen_config=CONFIG):
        texts[piece.index] += piece.text  # pieces of different answers alternate
    assert texts == [r.text for r in responses], "greedy answers do not depend on neighbours"

    async def ask(name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        words = [piece.text async for piece in pipe.generate(f"Greet {name}.", CONFIG)]
        print(f"  {name}: {''.join(words)!r}")

    async def main() -> None:
        await asyncio.gather(ask("Ada", 0.0), ask("Grace", 0.1), ask("Edsger", 0.2))

    asyncio.run(main())
