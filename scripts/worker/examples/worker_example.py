#!/usr/bin/env python3
"""
Um worker de exemplo, feito com o kit (worker.py): responde cinco linhas com pausas e termina.

    python3 scripts/worker/examples/worker_example.py            atende uma tarefa e sai
    python3 scripts/worker/examples/worker_example.py --loop     atende para sempre

Só precisa de redis-py. As opções e variáveis do Redis são as do proxy: -R REDIS_SERVER,
-S REDIS_PASSWORD, -C REDIS_CHANNEL, -X REDIS_PREFIX, -L REDIS_LIST_PREFIX. O gêmeo em TypeScript
é worker-example.ts.
"""

import argparse
import os
import sys
import threading
import time

# o kit está uma pasta acima; num projeto seu, ao lado do worker, esta linha sobra
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from worker import proxy_flags, serve  # noqa: E402

LINE_COUNT = 5

parser = argparse.ArgumentParser(description=__doc__, parents=[proxy_flags()])
parser.add_argument("--pause", type=int, default=400, help="ms entre linhas")
parser.add_argument("--loop", action="store_true", help="atende para sempre")
args = parser.parse_args()
last = threading.Event()


def answer(task, _gone):
    """Entrega as linhas; sem --loop, a primeira tarefa é a última, mesmo que o cliente saia."""
    try:
        for n in range(1, LINE_COUNT + 1):
            yield {"n": n, "of": LINE_COUNT, "url": task["url"], "body": task["body"]}
            time.sleep(args.pause / 1000)
    finally:
        if not args.loop:
            last.set()


serve(answer, last, **vars(args))
