"""Loads the embedded model, answers two prompts, then streams an answer as it is written."""

from lmdeploy_c import GenerationConfig, pipeline

with pipeline() as pipe:
    config = GenerationConfig(max_new_tokens=64)
    for response in pipe(["What is the capital of France?", "Say hello in one sentence."], config):
        print(response.text)

    for piece in pipe.stream_infer("Why is the sky blue?", gen_config=config):
        print(piece.text, end="", flush=True)
    print()
