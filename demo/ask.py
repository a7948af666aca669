"""Start `pars serve` with a ranker, score and compare a few prompts over HTTP, and stop it."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

PROMPTS = [
    "What is the capital of France?",
    "Translate 'good morning' into Spanish.",
    "Thanks!",
    "Write a Python function that reverses a linked list, and explain each step.",
    "Write a detailed 1500-word essay on the causes of the First World War.",
    "Give me a complete marketing plan for a new coffee shop, with a table for each quarter.",
]


def main(ranker: str) -> None:
    """Score, sort, compare."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(["pars", "serve", "--ranker", ranker, "--port", str(port)])
    try:
        wait_until_ready(server, url)
        scores = post(url + "/score_batch", {"prompts": PROMPTS})["scores"]
        print("\nPOST /score_batch, in the order in which the engine would run them:\n")
        print("  score  prompt")
        for score, prompt in sorted(zip(scores, PROMPTS, strict=True)):
            print(f"  {score:5.2f}  {prompt}")
        answer = post(url + "/compare", {"prompt_a": PROMPTS[0], "prompt_b": PROMPTS[4]})
        print(f"\nPOST /compare: the longer answer is expected for {answer['winner']}:")
        print(f"  {answer[answer['winner']]}")
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(server: subprocess.Popen, url: str) -> None:
    """Until /health answers; at once if the server is gone."""
    for _ in range(300):
        if server.poll() is not None:
            sys.exit("pars serve did not start")
        try:
            urllib.request.urlopen(url + "/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("pars serve does not answer")


def post(url: str, body: dict) -> dict:
    """JSON in, JSON out."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    main(sys.argv[1])
