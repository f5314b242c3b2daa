"""
Um worker feito com o kit em Python, que faz o que o caminho do pedido manda. Uma porta é um arquivo
na pasta GATES, que o teste cria quando o gerador deve seguir.
"""

import asyncio
import os
import sys
import time

from worker import head, raw, serve, sse

VALUES = {"/circular": [], "/object": object(), "/nan": float("nan")}
VALUES["/circular"].append(VALUES["/circular"])


def wait_gate(name, gone=lambda: False):
    """Espera que o teste abra uma porta, ou que ninguém espere mais."""
    while not os.path.exists(os.path.join(os.environ["GATES"], name)) and not gone():
        time.sleep(0.005)


def respond(task, gone):
    """Dá o gerador, ou o devolve onde devia entregar."""
    return {"n": 1} if task["url"] == "/value" else answer(task, gone)


def answer(task, gone):
    """Entrega o que o caminho manda, e anuncia cada linha e o fim na saída."""
    url = task["url"]
    try:
        if url == "/head":
            yield head(404, {"X-Reason": "no such order"})
        elif url == "/gates":
            for n in (1, 2, 3):
                wait_gate(str(n))
                yield {"n": n, "body": task["body"]}
            yield " um texto vai como está "
        elif url == "/raise":
            yield {"n": 1}
            raise RuntimeError('acabou o "papel"\n')
        elif url == "/exit":
            yield {"n": 1}
            sys.exit("saiu")
        elif url == "/interrupt":
            yield {"n": 1}
            raise KeyboardInterrupt
        elif url == "/cancel":
            yield {"n": 1}
            raise asyncio.CancelledError
        elif url == "/bytes":
            yield '{"ç":1}'.encode()
        elif url in ("/raw", "/raw-raise"):
            yield raw(418, {"X-Two": ["a", "b"]})
            for value in ("", " a\r\n", b"\0\xff", {"n": 1}, "HTTP ABORT", sse("b\nc", "e", 7)):
                yield value
            if url == "/raw-raise":
                raise RuntimeError("acabou")
            return
        elif url == "/return":
            yield {"n": 1}
            return {"n": 2}
        elif url in VALUES:
            yield {"n": 1}
            yield VALUES[url]
        elif url == "/gone":
            yield {"n": 1}
            wait_gate("gone", gone)
        elif url == "/forever":
            for n in range(1, 1_000_000):
                print(f"yield {n}", flush=True)
                yield {"n": n}
        elif url.startswith("/late"):
            wait_gate(url[1:])
            yield {"n": 1}
        elif url == "/raw-hold":
            yield raw(200, {"Content-Type": "text/event-stream"})
            yield "data: 1\n\n"
            wait_gate("hold")
        elif url == "/hold":
            yield {"n": 1}
            wait_gate("hold")
            yield {"n": 2}
        yield os.environ.get("NAME", "fim")
    finally:
        print(f"finally {url}", flush=True)


GIVEN = {name: os.environ.get(name.upper()) for name in ("backlog", "grace", "takeover")}
OPTIONS = {name: int(text) for name, text in GIVEN.items() if text}
if os.environ.get("NAME"):
    OPTIONS["name"] = os.environ["NAME"]
serve(respond, **OPTIONS)
