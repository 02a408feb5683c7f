"""Start bei-serve on a bundle, ask it through the openai client, print the similarities, stop it."""

import re
import subprocess
import sys

import numpy as np
from openai import OpenAI

QUERY = "How do I keep bread fresh?"
TEXTS = (
    "Store the loaf in a paper bag, cut side down.",
    "Freeze what you will not eat within two days.",
    "The train to the coast leaves at nine.",
)


def main(bundle: str) -> None:
    """Serve on a free loopback port, embed a query and three texts in one request."""
    command = [sys.executable, "-m", "bei.runtime.cli", bundle, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            found = re.search(r"http://\S+", line)
            if found is None:
                raise SystemExit(f"bei-serve did not start: {line!r}")
            print(line.strip())
            client = OpenAI(base_url=f"{found[0].rstrip('/')}/v1", api_key="none")
            answer = client.embeddings.create(model="minilm", input=[QUERY, *TEXTS])
            vectors = np.array([row.embedding for row in answer.data], dtype=np.float32)
            print(f"\n{QUERY}  ({answer.usage.prompt_tokens} tokens in the request)")
            for text, score in zip(TEXTS, vectors[1:] @ vectors[0], strict=True):
                print(f"  {score:6.3f}  {text}")
        finally:
            server.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
