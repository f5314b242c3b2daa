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
# Cada yield é uma linha: um texto vai como está, bytes também, o resto em JSON. O gerador só
# continua com a linha já no Redis, e com menos de `backlog` linhas por ler. Quando acaba, a
# resposta termina; se lança, a última linha é {"error": "<a mensagem>"}; se o cliente saiu, o
# próximo yield não volta, e os finally rodam. Num passo demorado, gone() diz se ninguém espera
# mais, e yield "" é sinal de vida. Se o primeiro yield é o de raw(), os outros chegam ao cliente
# byte por byte, sse() escreve um evento inteiro, e uma exceção corta a conexão. Uma aplicação WSGI
# (Flask…) atende com serve_wsgi.
#
# Atende uma tarefa por vez, reservada antes de lida: para várias ao mesmo tempo, rode vários. As
# que esperam não têm reserva, e o primeiro worker livre do canal as toma. Com SIGTERM ou SIGINT
# nada novo começa, e a tarefa em curso termina, salvo se ainda entregar linhas depois de `grace`
# ms. O gêmeo em TypeScript, que atende várias num processo, é worker.ts.

import argparse
import base64
import contextlib
import io
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from urllib.parse import unquote, unquote_to_bytes

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CLAIM_PREFIX = "ndjson_claim_"  # fixo no contrato

ABORT = b"HTTP ABORT"  # corta a conexão do cliente, para que ele saiba que falta o resto

MAX_BACKLOG_BYTES = 4 * 1024 * 1024  # por menos que sejam os elementos que esperam

RENEW_LIMIT_S = 15  # por quanto tempo se insiste com um Redis que recusa escritas

# Respostas que, como as de senha errada, não melhoram com o tempo.
REFUSED = re.compile(r"WRONGPASS|invalid username|Authentication|AUTH |DB index|permission")

# Respostas de um Redis que já não é o que atende: o comando não foi executado.
WRONG_SERVER = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MovedError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)

# Empurra só se alguém ainda espera, e renova a reserva; devolve o tamanho da lista.
PUSH = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('EXPIRE', KEYS[3], ARGV[1])
return redis.call('RPUSH', KEYS[2], unpack(ARGV, 2))"""

FORMS = "REDIS_SERVER: aceito host:porta/banco, redis://, rediss:// ou /caminho.sock?db=1"

USERINFO = r"(?:(?P<username>[^:@/]*)(?::(?P<password>.*))?@)?"

# As formas de REDIS_SERVER.
ADDRESSES = (
    rf"(?:(?P<scheme>rediss?)://{USERINFO})?(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)"
    r"(?::(?P<port>\d+))?(?:/(?P<database>\d*))?",
    rf"(?:unix:(?://{USERINFO})?)?(?P<path>/[^?]*[^?/])(?:\?db=(?P<database>\d+))?",
)


class Stopping(Exception):
    """A ordem de parar alcançou uma tarefa que não terminou a tempo."""


def head(status, headers=None):
    """Escreve a cabeça da resposta: o primeiro yield."""
    return f"HTTP {status} {json.dumps(headers or {})}"


def raw(status, headers=None):
    """Escreve a cabeça de uma resposta que vai ao cliente byte por byte: o primeiro yield."""
    return f"RAW {status} {json.dumps(headers or {})}"


def sse(data, event=None, id=None, retry=None):
    """Escreve um evento inteiro, para uma resposta começada por raw(). data: texto, ou JSON."""
    text = data if isinstance(data, str) else json.dumps(data, allow_nan=False)
    fields = {"event": event, "id": id, "retry": retry}
    given = {name: str(value) for name, value in fields.items() if value is not None}
    for name, value in given.items():
        if re.search(r"[\r\n]", value):
            raise TypeError(f"sse: a line break in {name}")  # começaria outro campo
    lines = [f"{name}: {value}\n" for name, value in given.items()]
    lines += [f"data: {line}\n" for line in re.split(r"\r\n|\r|\n", text)]
    return "".join(lines) + "\n"


def read_secret():
    """Lê a senha do arquivo de REDIS_PASSWORD_FILE, como o proxy; "" se não há."""
    path = os.environ.get("REDIS_PASSWORD_FILE")
    if not path:
        return ""
    with open(path, encoding="utf-8") as file:
        return re.sub(r"\r?\n$", "", file.read())


def proxy_flags():
    """Dá um ArgumentParser, para usar em parents=, com as opções e variáveis do proxy."""
    env = os.environ.get
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-R", "--redis", default=env("REDIS_SERVER") or "127.0.0.1:6379/1")
    parser.add_argument("-S", "--secret", default=env("REDIS_PASSWORD") or "")
    parser.add_argument("-C", "--channel", default=env("REDIS_CHANNEL") or "ndjson_jobs")
    parser.add_argument("-X", "--prefix", default=env("REDIS_PREFIX") or "ndjson_task_")
    parser.add_argument("-L", "--list-prefix", help="aceita e não usada: a tarefa diz a lista")
    return parser


def say(text):
    """Dá uma notícia do worker, numa linha."""
    print(f"worker: {text}", flush=True)


def redis_place(server, secret):
    """
    Separa um endereço do Redis, como o proxy.

    Devolve o que redis.Redis pede, e o endereço sem senha: "127.0.0.1:6379/1".
    Lança ValueError com as formas aceitas.
    """
    found = [re.fullmatch(form, server, re.IGNORECASE | re.ASCII) for form in ADDRESSES]
    parts = next((match.groupdict() for match in found if match), None)
    if parts is None:
        raise ValueError(FORMS)
    database = int(parts["database"] or 0)
    password = secret or unquote(parts["password"] or "")
    options = {"db": database, "password": password or None}
    options["username"] = unquote(parts["username"] or "") or None
    if "path" in parts:
        place = f"unix:{parts['path']}?db={database}"
        return {**options, "unix_socket_path": parts["path"]}, place
    host, port = parts["host"].strip("[]"), int(parts["port"] or 6379)
    if host != parts["host"]:
        ipaddress.IPv6Address(host)  # lança ValueError
    if not 1 <= port <= 65535:
        raise ValueError(FORMS)
    if (parts["scheme"] or "").lower() == "rediss":
        authority = os.environ.get("NODE_EXTRA_CA_CERTS")
        options.update(ssl=True, ssl_check_hostname=True, ssl_ca_certs=authority)
    shown = f"[{host}]" if ":" in host else host
    return {**options, "host": host, "port": port}, f"{shown}:{port}/{database}"


def insist(command, stop):
    """Repete um comando até o Redis atender, salvo se houver ordem de parar."""
    while True:
        try:
            return command()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            if stop.is_set() or REFUSED.search(str(error)):
                raise
            say(f"sem Redis: {error}")
            time.sleep(1)


def written(db, command):
    """
    Repete uma escrita enquanto o Redis a recusa porque já não é ele que atende: outra conexão
    resolve de novo o nome do servidor. O canal fica, que um rebaixado repete o que o novo publica.
    """
    deadline = time.monotonic() + RENEW_LIMIT_S
    while True:
        try:
            return command()
        except WRONG_SERVER:
            if time.monotonic() > deadline:
                raise
            say("este Redis não aceita escritas: outra conexão")
            db.connection_pool.disconnect(inuse_connections=False)
            time.sleep(1)


def to_element(value):
    """Dá os bytes de um valor: textos e bytes como estão, ou o JSON do resto."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
    return text.encode()


def values_of(given):
    """Dá os valores de uma resposta. Quem devolve em vez de entregar ouve isso."""
    told = "the handler must yield its answer, not return it"
    if isinstance(given, (str, bytes, dict)) or not hasattr(given, "__iter__"):
        raise TypeError(told)
    if (yield from given) is not None:
        raise TypeError(told)


class Answer:
    """A resposta a uma tarefa. framing: "lines" ou "raw", como o primeiro elemento decidir."""

    def __init__(self, db, task, settings):
        """Guarda o que a resposta usa: cliente do Redis, tarefa e configurações."""
        self.db, self.task, self.settings = db, task, settings
        self.framing, self.sizes = None, []
        claim = CLAIM_PREFIX + task["uuid"]
        self.keys = (task["task_key"], task["task_list"], claim)

    def gone(self):
        """Diz se ninguém espera mais pela resposta."""
        return not self.db.exists(self.task["task_key"])

    def push(self, *elements):
        """Empurra elementos; devolve quantos a lista tem, ou 0 se ninguém espera mais."""
        ttl = self.settings["claim_ttl"]
        return written(self.db, lambda: self.db.eval(PUSH, 3, *self.keys, ttl, *elements))

    def give(self, element):
        """Empurra um elemento e espera, se preciso, que o proxy leve o que se acumulou."""
        if element and not self.framing:
            self.framing = "raw" if re.match(rb"\s*RAW\b", element) else "lines"
        is_split = self.framing == "raw" and element == ABORT
        parts = (b"HTTP", b" ABORT") if is_split else (element,)
        length = self.push(*parts)
        is_wanted = length > 0
        self.sizes += map(len, parts)
        while is_wanted:
            del self.sizes[: max(0, len(self.sizes) - length)]
            if length < self.settings["backlog"] and sum(self.sizes) < MAX_BACKLOG_BYTES:
                break
            time.sleep(0.02)
            length = self.db.llen(self.task["task_list"])
            is_wanted = not self.gone()
        return is_wanted

    def run(self, handler, stop):
        """Empurra o que o gerador entrega, até o fim dele ou a saída do cliente."""
        deadline = None
        with contextlib.closing(values_of(handler(self.task, self.gone))) as values:
            for value in values:
                if not self.give(to_element(value)):
                    return
                if stop.is_set():
                    deadline = deadline or time.monotonic() + self.settings["grace"] / 1000
                    if time.monotonic() >= deadline:
                        raise Stopping("worker stopping")


def read_task(db, key, claim, state):
    """
    Lê uma tarefa já reservada; None se ela não existe. Enquanto nenhuma foi achada isso é notícia:
    o canal é comum a todos os bancos de um Redis, e as chaves não.
    """
    text = db.get(key)
    if text is None:
        if not state["found"]:
            say(f"{key.decode()} não está em {state['where']}: é outro banco?")
        written(db, lambda: db.delete(claim))
        return None
    state["found"] = True
    task = json.loads(text)
    for name in ("uuid", "task_key", "task_list"):
        if not isinstance(task, dict) or not isinstance(task.get(name), str):
            raise ValueError(f"a tarefa não tem {name}")
    return task


def run_task(db, handler, key, stop, settings):
    """Reserva uma tarefa, responde e termina. key: a chave anunciada, em bytes."""
    claim = CLAIM_PREFIX + key.decode()[len(settings["prefix"]) :]
    ttl = settings["claim_ttl"]
    if not written(db, lambda: db.set(claim, settings["name"], nx=True, ex=ttl)):
        return  # é de outro worker
    task = read_task(db, key, claim, settings["state"])
    if task is None:
        return
    say(task["uuid"])
    answer = Answer(db, task, settings)
    try:
        answer.run(handler, stop)
    except BaseException as error:  # pylint: disable=broad-except
        # nem um sys.exit do gerador deixa o cliente a esperar, nem termina o worker
        if not isinstance(error, Stopping):
            traceback.print_exc()
        line = json.dumps({"error": str(error) or type(error).__name__})
        last = ABORT if answer.framing == "raw" else line
        # se o Redis recusa esta, sem o DEL o cliente lê o erro de MAXTIME, e não um falso fim
        insist(lambda: answer.push(last), stop)
    insist(lambda: written(db, lambda: db.delete(key)), stop)


def listen(db, handler, stop, settings):
    """Ouve o canal e atende uma tarefa por vez, até a ordem de parar ou a queda do Redis."""
    prefix = settings["prefix"].encode()
    with contextlib.closing(db.pubsub()) as channel:
        channel.subscribe(settings["channel"])
        while not stop.is_set():
            message = channel.get_message(timeout=0.5)
            if message and message["type"] == "subscribe":
                say(f"ouvindo {settings['channel']} em {settings['state']['where']}")
                settings["state"]["ready"] = True
            elif message and message["type"] == "message" and message["data"].startswith(prefix):
                try:
                    run_task(db, handler, message["data"], stop, settings)
                except (redis.ConnectionError, redis.TimeoutError):
                    raise
                except Exception as error:  # pylint: disable=broad-except
                    say(f"tarefa deixada: {error}")  # o defeito é dela, e não das outras


def run_worker(handler, stop, settings):
    """Conecta e atende, até a ordem de parar. Lança o que o tempo não muda."""
    options, where = redis_place(settings["redis"], settings["secret"] or read_secret())
    state = settings["state"] = {"where": where, "ready": False, "found": False}
    db = redis.Redis(
        **options,
        retry=Retry(NoBackoff(), 0),  # uma linha repetida sozinha poderia chegar duas vezes
        socket_timeout=30,
        health_check_interval=15,
    )
    while not stop.is_set():
        try:
            insist(lambda: listen(db, handler, stop, settings), stop)
        except redis.RedisError as error:
            if stop.is_set():
                return
            if REFUSED.search(str(error)) and not state["ready"]:
                raise ValueError(f"{where}: {error}") from error
            say(f"sem Redis: {error}")
            time.sleep(1)


def serve(handler, stop=None, **options):
    """
    Ouve o canal e atende as tarefas, até SIGTERM, SIGINT ou stop.set(). Reconecta para sempre; um
    endereço, uma senha ou um banco que não servem o terminam com uma linha e o código de saída 1.

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
    try:
        run_worker(handler, stop, settings)
    except (ValueError, OSError) as error:
        say(error)
        sys.exit(1)


def make_environ(task, gone):
    """Dá o ambiente WSGI de uma tarefa; as duas chaves json_proxy.* são a tarefa e gone()."""
    encoded = task.get("body_encoding") == "base64"
    body = base64.b64decode(task["body"]) if encoded else task["body"].encode()
    path, _, query = task["url"].partition("?")
    headers = {name.upper().replace("-", "_"): text for name, text in task["headers"].items()}
    name, _, port = headers.get("HOST", "localhost").rpartition(":")
    has_port = port.isdigit()
    scheme = "https" if headers.get("X_FORWARDED_PROTO") == "https" else "http"
    environ = {
        "REQUEST_METHOD": task["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": name if has_port else headers.get("HOST", "localhost"),
        "SERVER_PORT": port if has_port else "443" if scheme == "https" else "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": task["remote_address"],
        "CONTENT_TYPE": headers.pop("CONTENT_TYPE", ""),
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "json_proxy.task": task,
        "json_proxy.gone": gone,
    }
    for name in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):
        headers.pop(name, None)
    environ.update({f"HTTP_{name}": text for name, text in headers.items()})
    return environ


class WsgiResponse:
    """O que uma aplicação WSGI disse da resposta: a cabeça, e o que escreveu por write()."""

    def __init__(self):
        """Nada foi dito ainda."""
        self.head, self.written = None, []

    def start(self, status, headers, exc_info=None):
        """É o start_response do WSGI; a segunda chamada só vale com um erro, e antes dos bytes."""
        if exc_info and self.head == "":
            raise exc_info[1]
        if self.head is not None and not exc_info:
            raise AssertionError("start_response was called twice")
        grouped = {}
        for name, value in headers:
            grouped.setdefault(name, []).append(value)
        self.head = raw(int(status.split(" ")[0]), grouped)
        return self.written.append

    def take(self):
        """Devolve, uma vez, a cabeça e o que ainda não foi dado."""
        if self.head is None:
            raise AssertionError("start_response was not called")
        ready = ([self.head] if self.head else []) + self.written
        self.head, self.written[:] = "", []
        return ready


def serve_wsgi(app, stop=None, **options):
    """
    Põe uma aplicação WSGI (Flask, Django, Bottle…) a atender as tarefas; o que ela entrega aos
    poucos chega aos poucos. Uma exceção antes do primeiro byte é um 500; depois, corta a conexão.

    app: a aplicação; stop e options: como em serve
    """

    def answer(task, gone):
        """Entrega a cabeça e os pedaços de uma resposta."""
        response, parts, begun = WsgiResponse(), (), False
        try:
            parts = app(make_environ(task, gone), response.start)
            for part in parts:
                if not part and not response.written:
                    continue
                for ready in (*response.take(), part):
                    yield ready
                    begun = True
            if not begun:
                yield from response.take()
        except Exception:  # pylint: disable=broad-except
            if begun:
                raise
            traceback.print_exc()
            yield raw(500, {"Content-Type": "application/json"})
            yield json.dumps({"error": "internal server error"})
        finally:
            getattr(parts, "close", lambda: None)()

    serve(answer, stop, **options)
