#!/usr/bin/env python3
"""
Um worker de exemplo: ouve o canal, lê a tarefa, responde cinco linhas com pausas e termina.

    python3 scripts/worker_example.py            atende uma tarefa e sai
    python3 scripts/worker_example.py --loop     atende para sempre

Só precisa de redis-py. As opções e variáveis do Redis são as do proxy: -R REDIS_SERVER,
-S REDIS_PASSWORD, -C REDIS_CHANNEL, -X REDIS_PREFIX, -L REDIS_LIST_PREFIX. O gêmeo em TypeScript
é worker-example.ts.
"""

import argparse
import json
import os
import re
import time

import redis

LINE_COUNT = 5


def connect(server, password):
    """
    Conecta ao Redis.

    server: host:porta/banco, redis://..., rediss://..., /caminho.sock?db=N ou unix:/caminho.sock
    password: senha; se não for vazia, vence a da URL
    Retorna o cliente, com respostas em texto. Lança redis.RedisError se não conectar.
    """
    path = re.sub(r"^unix:(//)?", "", server)
    if path.startswith("/"):
        server = "unix://" + path
    elif "://" not in server:
        server = "redis://" + server
    client = redis.Redis.from_url(server, decode_responses=True)
    if password:
        client.connection_pool.connection_kwargs["password"] = password
    client.ping()
    return client


def serve(client, task_key, args):
    """
    Atende uma tarefa: uma linha por vez, e o DEL da tarefa no fim.

    client: cliente do Redis
    task_key: a chave anunciada no canal
    args: as opções; pause em ms
    """
    if not task_key.startswith(args.prefix):
        return  # de outra instalação no mesmo canal
    task_list = args.list_prefix + task_key[len(args.prefix) :]
    text = client.get(task_key)
    if text is None:
        return  # o cliente já desistiu
    task = json.loads(text)
    for n in range(1, LINE_COUNT + 1):
        if not client.exists(task_key):
            return  # cancelada: o cliente foi embora
        line = {"n": n, "of": LINE_COUNT, "url": task["url"], "body": task["body"]}
        client.rpush(task_list, json.dumps(line))  # a tarefa também a diz: task["task_list"]
        time.sleep(args.pause / 1000)
    client.delete(task_key)  # terminou: o proxy esvazia a lista e fecha a resposta


def main():
    """Assina o canal e atende o que chega."""
    env = os.environ.get
    parser = argparse.ArgumentParser(description="Worker de exemplo do json-proxy")
    parser.add_argument("-R", "--redis", default=env("REDIS_SERVER") or "127.0.0.1:6379/1")
    parser.add_argument("-S", "--secret", default=env("REDIS_PASSWORD") or "")
    parser.add_argument("-C", "--channel", default=env("REDIS_CHANNEL") or "ndjson_jobs")
    parser.add_argument("-X", "--prefix", default=env("REDIS_PREFIX") or "ndjson_task_")
    parser.add_argument("-L", "--list-prefix", default=env("REDIS_LIST_PREFIX") or "ndjson_list_")
    parser.add_argument("--pause", type=int, default=400, help="ms entre linhas")
    parser.add_argument("--loop", action="store_true", help="atende para sempre")
    args = parser.parse_args()
    client = connect(args.redis, args.secret)
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(args.channel)
    print(f"worker: ouvindo {args.channel}", flush=True)
    for message in pubsub.listen():
        print(f"worker: {message['data']}", flush=True)
        try:
            serve(client, message["data"], args)
        except redis.RedisError as error:
            print(f"worker: {error}", flush=True)
        if not args.loop:
            break


if __name__ == "__main__":
    main()
