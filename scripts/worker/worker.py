#!/usr/bin/env python3
# O kit do worker em Python, num arquivo só, que precisa só da redis-py: copie-o para o seu projeto.
#
#     from worker import head, serve
#
#     def answer(task, gone):
#         yield head(200, {"X-Model": "demo"})              # opcional, antes de tudo
#         for token in ask_model(task["body"]):
#             yield {"token": token}
#
#     serve(answer)
#
# Cada yield é uma linha: um texto vai como está, o resto em JSON. O gerador só continua com a linha
# já no Redis, e com menos de `backlog` linhas por ler. Quando acaba, a resposta termina; se lança,
# a última linha é {"error": "<a mensagem>"}; se o cliente saiu, o próximo yield não volta, e os
# finally rodam. Num passo demorado, gone() diz se ninguém espera mais, e yield "" é sinal de vida.
#
# Atende uma tarefa por vez, reservada antes de lida: para várias ao mesmo tempo, rode vários. As
# que esperam não têm reserva, e o primeiro worker livre do canal as toma. Com SIGTERM ou SIGINT
# nada novo começa, e a tarefa em curso termina, salvo se ainda entregar linhas depois de `grace`
# ms. O gêmeo em TypeScript, que atende várias num processo, é worker.ts.

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
import traceback
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CLAIM_PREFIX = "ndjson_claim_"  # fixo no contrato

# Empurra só se alguém ainda espera, e renova a reserva; devolve o tamanho da lista.
PUSH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[3], ARGV[2])
return redis.call('RPUSH', KEYS[2], ARGV[1])"""


class Stopping(Exception):
    """A ordem de parar alcançou uma tarefa que não terminou a tempo."""


def head(status, headers=None):
    """Escreve a cabeça da resposta: o primeiro yield, em até 1 s do pedido."""
    return f"HTTP {status} {json.dumps(headers or {})}"


def read_secret():
    """Lê a senha de REDIS_PASSWORD ou do arquivo de REDIS_PASSWORD_FILE, como o proxy."""
    path = os.environ.get("REDIS_PASSWORD_FILE")
    if os.environ.get("REDIS_PASSWORD") or not path:
        return os.environ.get("REDIS_PASSWORD", "")
    with open(path, encoding="utf-8") as file:
        return re.sub(r"\r?\n$", "", file.read())


def proxy_flags():
    """Dá um ArgumentParser, para usar em parents=, com as opções e variáveis do proxy."""
    env = os.environ.get
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-R", "--redis", default=env("REDIS_SERVER") or "127.0.0.1:6379/1")
    parser.add_argument("-S", "--secret", default=read_secret())
    parser.add_argument("-C", "--channel", default=env("REDIS_CHANNEL") or "ndjson_jobs")
    parser.add_argument("-X", "--prefix", default=env("REDIS_PREFIX") or "ndjson_task_")
    parser.add_argument("-L", "--list-prefix", help="aceita e não usada: a tarefa diz a lista")
    return parser


def connect(server, secret):
    """
    Faz um cliente do Redis, com respostas em texto, que conecta quando usado.

    server: host:porta/banco, redis://..., rediss://..., /caminho.sock?db=N ou unix:/caminho.sock
    secret: senha; se não for vazia, vence a da URL
    """
    path = re.sub(r"^unix:(?=/(?!/))", "", server)
    url = path if "://" in path else ("unix://" if path.startswith("/") else "redis://") + path
    if secret:
        password = quote(secret, safe="")
        url = re.sub(r"^(\w+://)(?:([^:@/]*)(?::.*)?@)?", rf"\g<1>\g<2>:{password}@", url)
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        retry=Retry(NoBackoff(), 0),  # uma linha repetida sozinha poderia chegar duas vezes
        socket_timeout=30,
        health_check_interval=15,
    )


def insist(command, stop):
    """Repete um comando até o Redis atender, salvo se houver ordem de parar."""
    while True:
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if stop.is_set():
                raise
            print(f"worker: sem Redis: {error}", flush=True)
            time.sleep(1)


def answer(db, handler, task, stop, settings):
    """
    Empurra o que o gerador entrega, até o fim dele ou a saída do cliente.

    db: cliente do Redis; task: a tarefa; stop: a ordem de parar, threading.Event
    Lança o que o gerador lançar, e Stopping.
    """
    keys = (task["task_key"], task["task_list"], CLAIM_PREFIX + task["uuid"])
    deadline = None

    def gone():
        """Diz se ninguém espera mais pela resposta."""
        return not db.exists(task["task_key"])

    with contextlib.closing(handler(task, gone)) as values:  # roda os finally do gerador
        for value in values:
            line = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
            length = db.eval(PUSH, 3, *keys, line, settings["claim_ttl"])
            if not length:
                return
            while length >= settings["backlog"] and not gone():
                time.sleep(0.02)
                length = db.llen(task["task_list"])
            if stop.is_set():
                deadline = deadline or time.monotonic() + settings["grace"] / 1000
                if time.monotonic() >= deadline:
                    raise Stopping("worker stopping")


def run_task(db, handler, key, stop, settings):
    """Reserva uma tarefa, responde e termina. key: a chave anunciada; o resto como em answer."""
    claim = CLAIM_PREFIX + key[len(settings["prefix"]) :]
    if not db.set(claim, settings["name"], nx=True, ex=settings["claim_ttl"]):
        return  # é de outro worker
    text = db.get(key)
    if text is None:
        db.delete(claim)  # o cliente já desistiu
        return
    task = json.loads(text)
    print(f"worker: {task['uuid']}", flush=True)
    try:
        answer(db, handler, task, stop, settings)
    except Exception as error:  # pylint: disable=broad-except
        if not isinstance(error, Stopping):
            traceback.print_exc()
        line = json.dumps({"error": str(error) or type(error).__name__})
        last = (PUSH, 3, key, task["task_list"], claim, line, settings["claim_ttl"])
        # se o Redis recusa esta, sem o DEL o cliente lê o erro de MAXTIME, e não um falso fim
        insist(lambda: db.eval(*last), stop)
    insist(lambda: db.delete(key), stop)


def listen(db, handler, stop, settings):
    """Ouve o canal e atende uma tarefa por vez, até a ordem de parar ou a queda do Redis."""
    with contextlib.closing(db.pubsub(ignore_subscribe_messages=True)) as channel:
        channel.subscribe(settings["channel"])
        print(f"worker: ouvindo {settings['channel']}", flush=True)
        while not stop.is_set():
            message = channel.get_message(timeout=0.5)
            if message and message["data"].startswith(settings["prefix"]):
                try:
                    run_task(db, handler, message["data"], stop, settings)
                except redis.ResponseError as error:
                    print(f"worker: tarefa deixada: {error}", flush=True)


def serve(handler, stop=None, **options):
    """
    Ouve o canal e atende as tarefas, até SIGTERM, SIGINT ou stop.set(). Reconecta para sempre.

    handler: função geradora, handler(task, gone)
    stop: threading.Event, outra ordem de parar
    options: redis, secret, channel, prefix (padrões em proxy_flags), name (o que vai na reserva),
        claim_ttl (s), grace (ms), backlog (linhas)
    """
    settings = {**vars(proxy_flags().parse_args([])), "claim_ttl": 600, "grace": 10_000}
    settings.update(backlog=1000, name=f"{socket.gethostname()}:{os.getpid()}")
    settings.update(options)
    stop = stop or threading.Event()

    def obey(number, _frame):
        """Anota a ordem de parar; um segundo sinal mata na hora."""
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, obey)
    db = connect(settings["redis"], settings["secret"])
    while not stop.is_set():
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            insist(lambda: listen(db, handler, stop, settings), stop)
