"""A server beside a pipeline, on the same weights, asked as any HTTP client asks it."""

import json
import urllib.request

import lmdeploy_c

QUESTION = {"role": "user", "content": "What is the capital of France?"}

with lmdeploy_c.pipeline() as pipe, pipe.serve(port=0) as server:
    body = {"messages": [QUESTION], "temperature": 0, "stream": True}
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        for line in response:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                print(choice["delta"].get("content", ""), end="", flush=True)
    print()
    assert pipe(QUESTION["content"]).text  # the pipeline answers as before
