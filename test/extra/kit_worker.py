"""
Um worker feito com o kit em Python, que faz o que o caminho do pedido manda. Uma porta é um arquivo
na pasta GATES, que o teste cria quando o gerador deve seguir.
"""

import os
import time

from worker import head, serve

VALUES = {"/circular": [], "/object": object(), "/nan": float("nan")}
VALUES["/circular"].append(VALUES["/circular"])


def wait_gate(name, gone=lambda: False):
    """Espera que o teste abra uma porta, ou que ninguém espere mais."""
    while not os.path.exists(os.path.join(os.environ["GATES"], name)) and not gone():
        time.sleep(0.005)


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
        elif url == "/hold":
            yield {"n": 1}
            wait_gate("hold")
            yield {"n": 2}
        yield os.environ.get("NAME", "fim")
    finally:
        print(f"finally {url}", flush=True)


GIVEN = {name: os.environ.get(name.upper()) for name in ("backlog", "grace")}
serve(answer, **{name: int(text) for name, text in GIVEN.items() if text})
