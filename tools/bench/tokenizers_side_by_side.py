#!/usr/bin/env python3
"""Compares the speed and the ids of Martlet's tokenizer with Hugging Face tokenizers, on one core.

    python tools/bench/tokenizers_side_by_side.py --text FILE --model DIR [--model DIR ...]

Each round encodes the whole file once with either, one after the other, so that both see the same machine; loading is
not counted. Both are pinned to one core (`taskset`, where there is one) and the reference has its threads turned off. The
medians are printed; the exit status is 1 if the counts of tokens differ. `--rival` is the command measured: `{text}`
and `{model}` are filled in, and it prints JSON with `tokens` and `seconds`. `--kib` encodes only the beginning.
"""
import os

os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import argparse
import json
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from tokenizers import Tokenizer, __version__

RIVAL = ".build/release/martlet inspect {text} --model {model} --tokenize --json"


def rival(command, text, model):
    words = [word.format(text=text, model=model) for word in shlex.split(command)]
    core = str(min(os.sched_getaffinity(0)))
    prefix = ["taskset", "-c", core] if shutil.which("taskset") else []
    done = subprocess.run(prefix + words, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(words)} failed:\n{done.stderr}")
    result = json.loads(done.stdout)
    return result["tokens"], result["seconds"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--text", required=True, help="a UTF-8 file")
    options.add_argument("--model", required=True, action="append", help="a folder with tokenizer.json")
    options.add_argument("--rival", default=RIVAL, help=f"default: {RIVAL}")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--kib", type=int, default=1024)
    arguments = options.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    data = pathlib.Path(arguments.text).read_bytes()[:arguments.kib * 1024]
    text = data.decode("utf-8", errors="ignore")
    size = len(text.encode())
    agrees = True
    print(f"{size} bytes, {arguments.rounds} rounds, medians; tokenizers {__version__}")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "text.txt")
        pathlib.Path(path).write_text(text, newline="")
        for model in arguments.model:
            reference = Tokenizer.from_file(os.path.join(model, "tokenizer.json"))
            times, counts = ([], []), (set(), set())
            for _ in range(arguments.rounds):
                begin = time.perf_counter()
                encoded = reference.encode(text, add_special_tokens=False)
                times[0].append(time.perf_counter() - begin)
                counts[0].add(len(encoded.ids))
                tokens, seconds = rival(arguments.rival, path, model)
                times[1].append(seconds)
                counts[1].add(tokens)
            agrees &= counts[0] == counts[1]
            ours, theirs = statistics.median(times[1]), statistics.median(times[0])
            print(f"{os.path.basename(os.path.normpath(model)):16} tokenizers {size / theirs / 1e6:7.2f} MB/s   "
                  f"martlet {size / ours / 1e6:7.2f} MB/s   ratio {theirs / ours:6.2f}   "
                  f"tokens {sorted(counts[0])} {sorted(counts[1])}", flush=True)
    sys.exit(0 if agrees else 1)


main()
