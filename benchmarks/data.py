"""How fast text becomes training samples, and how much memory that takes.

    python benchmarks/data.py                       # 64 MB, 1, 2, 4 … threads, one row each
    python benchmarks/data.py --megabytes 2000 --workers 2

Each row is a process of its own. Peak memory is the largest resident set of the data stage, with and without a cache,
libraries included. Reading samples is measured after that: it maps pages of the cache, which the system takes back
when it has a better use for them.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

MEASURE = """
import json, os, sys, threading, time
import psutil

path, workers, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
from gpt2_hf.options.arguments import DataArguments
from gpt2_hf.data import load_data
from gpt2_hf.data.tokenizer import load_tokenizer

process = psutil.Process()
peak = before = process.memory_info().rss
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.05):
        peak = max(peak, process.memory_info().rss)

threading.Thread(target=watch, daemon=True).start()
args = DataArguments(dataset_name=None, train_file=path, sequence_mode=mode, preprocessing_num_workers=workers)
tokenizer = load_tokenizer()
start = time.perf_counter()
data = load_data(args, tokenizer, 1024)
seconds = time.perf_counter() - start
start = time.perf_counter()
load_data(args, tokenizer, 1024)
again = time.perf_counter() - start
done.set()
peak = max(peak, process.memory_info().rss)
samples = data.samples["train"]
start = time.perf_counter()
for i in range(0, len(samples), max(len(samples) // 20000, 1)):
    samples[i]
reading = (time.perf_counter() - start) / len(range(0, len(samples), max(len(samples) // 20000, 1)))
tokens = sum(accounting.text_tokens for accounting in data.accounting.values())
print(json.dumps({
    "seconds": seconds, "again": again, "peak": peak, "before": before,
    "tokens": tokens, "microseconds_per_sample": reading * 1e6,
}))
"""


def main() -> None:
    """Print one row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="size of the generated corpus")
    parser.add_argument("--workers", type=int, nargs="+", default=None, help="threads that tokenise")
    parser.add_argument("--sequence_mode", default="padding_free")
    args = parser.parse_args()
    cores = psutil.cpu_count() or 1
    workers = args.workers or [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= cores]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        write_corpus(corpus, args.megabytes)
        size = corpus.stat().st_size
        print(f"{size / 1e6:,.0f} MB of text, {cores} cores, load {psutil.getloadavg()[0]:.1f}")
        print("| threads | seconds | MB/s | tokens/s | second start, s | µs a sample | peak MiB | of it libraries |")
        print("|---|---|---|---|---|---|---|---|")
        for number in workers:
            print(row(measure(corpus, number, args.sequence_mode, Path(folder)), number, size), flush=True)


def write_corpus(path: Path, megabytes: int) -> None:
    """Lines of 20 to 120 words: the words of the language reference, and as many that are made up."""
    from pydoc_data.topics import topics

    generator = random.Random(0)
    words = sorted({word for topic in topics.values() for word in topic.split()})
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words += ["".join(generator.choices(letters, k=generator.randint(2, 12))) for _ in range(len(words))]
    left = megabytes * 1_000_000
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        while left > 0:
            lines = [" ".join(generator.choices(words, k=generator.randint(20, 120))) for _ in range(2000)]
            left -= stream.write("\n".join(lines) + "\n")


def measure(corpus: Path, workers: int, mode: str, folder: Path) -> dict:
    """Run the data stage once without and once with a cache, in a new process."""
    environment = {**os.environ, "HF_DATASETS_CACHE": str(folder / f"cache-{workers}-{time.time_ns()}")}
    command = [sys.executable, "-c", MEASURE, str(corpus), str(workers), mode]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def row(result: dict, workers: int, size: int) -> str:
    """A row of the table."""
    seconds = result["seconds"]
    cells = [
        f"{workers}",
        f"{seconds:.1f}",
        f"{size / 1e6 / seconds:.2f}",
        f"{result['tokens'] / seconds:,.0f}",
        f"{result['again']:.2f}",
        f"{result['microseconds_per_sample']:.0f}",
        f"{result['peak'] / 2**20:,.0f}",
        f"{result['before'] / 2**20:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
