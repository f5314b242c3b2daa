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
#
# Com `stream`, o REDIS_STREAM do proxy, as tarefas vêm dele, e não do canal: esperam enquanto
# nenhum worker está de pé. A de um worker que sumiu passa, depois de `takeover` segundos, a outro
# do mesmo `group`: desde o começo se ele nada tinha empurrado; se tinha, o cliente lê um erro
# (depois de raw(), a conexão é cortada). O que só estava parado e volta tarde demais nada mais
# empurra.

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
import uuid
from urllib.parse import unquote, unquote_to_bytes

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

CLAIM_PREFIX = "ndjson_claim_"  # fixo no contrato

ABORT = b"HTTP ABORT"  # corta a conexão do cliente, para que ele saiba que falta o resto

MAX_BACKLOG_BYTES = 4 * 1024 * 1024  # por menos que sejam os elementos que esperam

RENEW_LIMIT_S = 15  # por quanto tempo se insiste com um Redis que recusa escritas

READ_MS = 500  # por uma tarefa do stream, até olhar se veio a ordem de parar

ALIVE_S = 1  # entre os sinais de vida de uma tarefa que veio de um stream

# Respostas que, como as de senha errada, não melhoram com o tempo.
REFUSED = re.compile(r"WRONG|invalid username|Authentication|AUTH |DB index|permission")

# Respostas de um Redis que já não é o que atende: o comando não foi executado.
WRONG_SERVER = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MovedError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.MasterDownError,
)

# Os scripts de uma tarefa. As chaves são a dela, a da lista, a da reserva e, se ela veio de um, o
# stream; os argumentos, a reserva deste worker, a vida dela em segundos e, com um stream, o grupo,
# o consumidor e o id. Com um stream só quem tem a reserva escreve: quem esteve parado pode tê-la
# perdido. Ela dura o que a tarefa durar, e acaba no que já foi empurrado: nada, "lines" ou "raw".
SCRIPT_START = """
local is_queued = #KEYS == 4
local holder = is_queued and redis.call('GET', KEYS[3])
local is_wanted = redis.call('EXISTS', KEYS[1]) == 1
local life = ARGV[2]
if is_queued then life = math.max(life, redis.call('TTL', KEYS[1]) + 1) end
local is_ours = not is_queued or (holder and holder:sub(1, #ARGV[1]) == ARGV[1])
"""

# Deixa o stream sem a tarefa, que acabou.
SCRIPT_FORGET = """
if is_queued then
  redis.pcall('XACK', KEYS[4], ARGV[3], ARGV[5])
  redis.call('XDEL', KEYS[4], ARGV[5])
end
"""

# Reserva uma tarefa e a lê: devolve o JSON, 0 se ela não existe, 1 se é de outro. A que um worker
# que sumiu já tinha (o sexto argumento) vem com a reserva dele: se ela ainda é esta, e do grupo, a
# tarefa é de quem a tomar; a de um worker de outra espécie dura enquanto a tarefa durar.
CLAIM = f"""{SCRIPT_START}
local is_left = ARGV[6] == 'left'
holder = redis.call('GET', KEYS[3])
if not is_wanted then {SCRIPT_FORGET}
  redis.call('DEL', KEYS[3]) -- uma escrita: um Redis rebaixado, que não tem a tarefa, a recusa
  return 0
end
if is_left and holder and holder:sub(1, #ARGV[3] + 1) ~= ARGV[3] .. ' ' then
  redis.call('EXPIRE', KEYS[3], life)
  return 1
end
if (holder or '') ~= ARGV[7] then return 1 end
redis.call('SET', KEYS[3], ARGV[1], 'EX', life)
return redis.call('GET', KEYS[1])"""

# Empurra só se alguém ainda espera; devolve o tamanho da lista.
PUSH = f"""{SCRIPT_START}
if not is_wanted or not is_ours then return 0 end
-- depois de outra escrita, um Redis sem memória já não a recusaria
local length = redis.call('RPUSH', KEYS[2], unpack(ARGV, 7))
redis.call('EXPIRE', KEYS[3], life)
if is_queued then redis.call('SET', KEYS[3], ARGV[1] .. ARGV[6], 'KEEPTTL') end
return length"""

# Dá sinal de vida: devolve se alguém ainda espera pela resposta deste worker.
RENEW = f"""{SCRIPT_START}
if not is_wanted or not is_ours then return 0 end
redis.call('EXPIRE', KEYS[3], life)
if is_queued then redis.pcall('XCLAIM', KEYS[4], ARGV[3], ARGV[4], 0, ARGV[5], 'JUSTID') end
return 1"""

# Termina a tarefa, salvo se outro worker a tomou.
FINISH = f"""{SCRIPT_START}
if is_wanted and not is_ours then return 0 end
{SCRIPT_FORGET}
return redis.call('DEL', KEYS[1])"""

# Devolve ao grupo uma tarefa que ainda não foi reservada.
RELEASE = "redis.pcall('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], 'IDLE', 86400000, 'JUSTID')"

# Toma as tarefas cujo worker não dá sinal, com a reserva de cada uma, e acaba com as que já não
# estão no stream. Um XAUTOCLAIM não serve: antes do Redis 7 não diz o id destas.
LEFT = """
local found = {}
local idle = {'IDLE', ARGV[3], '-', '+', ARGV[4]}
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], unpack(idle))) do
  local id = row[1]
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'JUSTID')
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  if entry then
    local task_key = entry[2][2]
    local holder = redis.call('GET', ARGV[5] .. task_key:sub(ARGV[6] + 1))
    table.insert(found, {id, task_key, holder or ''})
  else
    redis.call('XACK', KEYS[1], ARGV[1], id)
  end
end
return found"""

FORMS = (
    "REDIS_SERVER: aceito host:porta/banco, redis://, rediss://, /caminho.sock?db=1 ou "
    "sentinel://host:porta,host:porta/primário/banco"
)

USERINFO = r"(?:(?P<username>[^:@/]*)(?::(?P<password>.*))?@)?"

# As formas de REDIS_SERVER.
ADDRESSES = (
    rf"(?:(?P<scheme>rediss?)://{USERINFO})?(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)"
    r"(?::(?P<port>\d+))?(?:/(?P<database>\d*))?",
    rf"(?:unix:(?://{USERINFO})?)?(?P<path>/[^?]*[^?/])(?:\?db=(?P<database>\d+))?",
)

# E a de um Redis de que os sentinels dizem onde está o primário.
SENTINELS = (
    rf"(?P<scheme>sentinels?)://{USERINFO}(?P<nodes>[^@/]+)/(?P<primary>[\w.-]+)"
    r"(?:/(?P<database>\d*))?"
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
    parser.add_argument("--stream", default=env("REDIS_STREAM") or "")
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


def make_db(server, secret):
    """
    Cria o cliente do Redis, ou do primário que os sentinels dão a cada conexão.

    Devolve o cliente, e o endereço sem senha. Lança ValueError com as formas aceitas.
    """
    options = {"socket_timeout": 30, "health_check_interval": 15}
    options["retry"] = Retry(NoBackoff(), 0)  # uma linha repetida sozinha poderia chegar duas vezes
    parts = re.fullmatch(SENTINELS, server, re.IGNORECASE | re.ASCII)
    if parts is None:
        place, where = redis_place(server, secret)
        return redis.Redis(**place, **options), where
    secure = parts["scheme"].lower() == "sentinels"
    given = parts["nodes"].split(",")
    nodes = [node if re.search(r":\d+$", node) else f"{node}:26379" for node in given]
    scheme = "rediss" if secure else "redis"
    places = [redis_place(f"{scheme}://{node}", secret)[0] for node in nodes]
    login = {"username": unquote(parts["username"] or "") or None}
    login["password"] = secret or unquote(parts["password"] or "") or None
    tls = {name: value for name, value in places[0].items() if name.startswith("ssl")}
    asked = [(place["host"], place["port"]) for place in places]
    sentinels = Sentinel(asked, 0, {"socket_timeout": 2, **tls}, **options, **login, **tls)
    db = sentinels.master_for(parts["primary"], db=int(parts["database"] or 0))
    shown = "sentinels" if secure else "sentinel"
    return db, f"{shown}://{','.join(nodes)}/{parts['primary']}/{parts['database'] or 0}"


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


class Call:
    """
    Uma tarefa por atender: a chave; de um stream, também o id e, se um worker que sumiu já a tinha,
    a reserva que deixou, ou vazio.
    """

    def __init__(self, db, settings, key, entry=None, left=None):
        """Guarda o que os scripts usam. key, entry e left: bytes, como vêm do Redis."""
        self.db, self.settings, self.entry, self.left = db, settings, entry, left
        self.key = key.decode()
        self.claim = CLAIM_PREFIX + self.key[len(settings["prefix"]) :]
        self.list = self.claim  # até que a tarefa seja lida

    def run(self, script, *rest):
        """Roda um script da tarefa; rest: os argumentos além dos que todos recebem."""
        settings = self.settings
        keys = [self.key, self.list, self.claim]
        if self.entry:
            keys.append(settings["stream"])
        given = [settings[name] for name in ("holder", "claim_ttl", "group", "name")]
        given += [self.entry or "", *rest]
        return written(self.db, lambda: self.db.eval(script, len(keys), *keys, *given))

    def take(self):
        """
        Reserva a tarefa e a lê; None se ela é de outro, ou não existe. Enquanto nenhuma foi achada
        isso é notícia: o canal é comum a todos os bancos de um Redis, e as chaves não.
        """
        state = self.settings["state"]
        text = self.run(CLAIM, "new" if self.left is None else "left", self.left or "")
        if text == 0 and not state["found"] and not self.entry:
            say(f"{self.key} não está em {state['where']}: é outro banco?")
        if isinstance(text, int):
            return None
        state["found"] = True
        task = json.loads(text)
        for name in ("uuid", "task_key", "task_list"):
            if not isinstance(task, dict) or not isinstance(task.get(name), str):
                raise ValueError(f"a tarefa não tem {name}")
        self.list = task["task_list"]
        return task

    def keep(self, over):
        """Dá sinal de vida até que a tarefa acabe, faça o gerador o que fizer."""
        while not over.wait(ALIVE_S):
            with contextlib.suppress(redis.RedisError):
                self.run(RENEW)


class Answer:
    """A resposta a uma tarefa. framing: "lines" ou "raw", como o primeiro elemento decidir."""

    def __init__(self, call, task):
        """Guarda o que a resposta usa: a chamada e a tarefa."""
        self.call, self.task = call, task
        self.framing, self.sizes = None, []

    def gone(self):
        """Diz se ninguém espera mais pela resposta."""
        return self.call.run(RENEW) == 0

    def push(self, *elements):
        """Empurra elementos; devolve quantos a lista tem, ou 0 se ninguém espera mais."""
        return self.call.run(PUSH, self.framing or "lines", *elements)

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
            if length < self.call.settings["backlog"] and sum(self.sizes) < MAX_BACKLOG_BYTES:
                break
            time.sleep(0.02)
            length = self.call.db.llen(self.call.list)
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
                    deadline = deadline or time.monotonic() + self.call.settings["grace"] / 1000
                    if time.monotonic() >= deadline:
                        raise Stopping("worker stopping")


def run_task(call, handler, stop):
    """
    Reserva uma tarefa, responde e termina. Da que um worker que sumiu já respondia só se diz o fim:
    o que ele empurrou não se repete.
    """
    task = call.take()
    if task is None:
        return
    say(task["uuid"])
    answer, over = Answer(call, task), threading.Event()
    try:
        answer.framing = (call.left or b"").split(b" ")[-1].decode()
        if answer.framing:
            raise Stopping("worker lost")
        if call.entry:
            threading.Thread(target=call.keep, args=(over,), daemon=True).start()
        answer.run(handler, stop)
    except BaseException as error:  # pylint: disable=broad-except
        # nem um sys.exit do gerador deixa o cliente a esperar, nem termina o worker
        if not isinstance(error, Stopping):
            traceback.print_exc()
        line = json.dumps({"error": str(error) or type(error).__name__})
        last = ABORT if answer.framing == "raw" else line
        # se o Redis recusa esta, sem o DEL o cliente lê o erro de MAXTIME, e não um falso fim
        insist(lambda: answer.push(last), stop)
    finally:
        over.set()
    insist(lambda: call.run(FINISH), stop)


def announced(db, stop, settings):
    """Dá as chaves que o canal anuncia, até a ordem de parar ou a queda do Redis."""
    with contextlib.closing(db.pubsub()) as channel:
        channel.subscribe(settings["channel"])
        while not stop.is_set():
            message = channel.get_message(timeout=0.5)
            if message and message["type"] == "subscribe":
                say(f"ouvindo {settings['channel']} em {settings['state']['where']}")
                settings["state"]["ready"] = True
            elif message and message["type"] == "message":
                yield (message["data"],)


def make_group(db, settings):
    """Faz o grupo, a partir do começo do stream, e o stream, se não existem."""
    names = settings["stream"], settings["group"]
    try:
        written(db, lambda: db.xgroup_create(*names, id="0", mkstream=True))
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


def take_entries(db, settings, is_look):
    """
    Toma do stream uma tarefa nova ou, quando é hora, a de um worker que sumiu.

    Devolve uma lista, vazia ou de uma só: chave, id e a reserva que outro deixou.
    """
    stream, group, name = (settings[key] for key in ("stream", "group", "name"))
    if is_look:
        limits = [int(settings["takeover"] * 1000), 1, CLAIM_PREFIX, len(settings["prefix"])]
        found = written(db, lambda: db.eval(LEFT, 1, stream, group, name, *limits))
        return [(key, entry, left) for entry, key, left in found]
    options = {"count": 1, "block": READ_MS}
    found = written(db, lambda: db.xreadgroup(group, name, {stream: ">"}, **options))
    return [(fields[b"task_key"], entry) for _, read in found for entry, fields in read]


def queued(db, stop, settings):
    """
    Dá as tarefas do stream, até a ordem de parar ou a queda do Redis. Se ele esteve calado, os
    outros também não deram sinal: o que se achou deles é deixado, e antes de tomar o que for
    espera-se que o deem.
    """
    state, takeover = settings["state"], settings["takeover"]
    make_group(db, settings)
    say(f"ouvindo {settings['stream']} em {state['where']}")
    look_at = time.monotonic() + (takeover if state["ready"] else 0)
    state["ready"] = True
    while not stop.is_set():
        asked_at = time.monotonic()
        is_look = asked_at >= look_at
        try:
            found = take_entries(db, settings, is_look)
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            make_group(db, settings)
            continue
        heard_at = time.monotonic()
        if heard_at - asked_at > takeover / 2:
            look_at, found = heard_at + takeover, [] if is_look else found
        elif is_look and not found:
            look_at = heard_at + takeover / 3
        for call in found:
            if not stop.is_set():
                yield call
                continue
            given = [settings[key] for key in ("stream", "group", "name")]
            db.eval(RELEASE, 1, *given, call[1])


def listen(db, handler, stop, settings):
    """Atende uma tarefa por vez, até a ordem de parar ou a queda do Redis."""
    prefix = settings["prefix"].encode()
    source = queued if settings["stream"] else announced
    with contextlib.closing(source(db, stop, settings)) as found:
        for key, *rest in found:
            try:
                if key.startswith(prefix):
                    run_task(Call(db, settings, key, *rest), handler, stop)
            except (redis.ConnectionError, redis.TimeoutError):
                raise
            except Exception as error:  # pylint: disable=broad-except
                say(f"tarefa deixada: {error}")  # o defeito é dela, e não das outras


def run_worker(handler, stop, settings):
    """Conecta e atende, até a ordem de parar. Lança o que o tempo não muda."""
    db, where = make_db(settings["redis"], settings["secret"] or read_secret())
    state = settings["state"] = {"where": where, "ready": False, "found": False}
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
    options: redis, secret, channel, prefix, stream (padrões em proxy_flags), name (o que vai na
        reserva), claim_ttl (s), grace (ms), backlog (linhas), group e takeover (s) do stream
    """
    settings = {**vars(proxy_flags().parse_args([])), "claim_ttl": 600, "grace": 10_000}
    settings.update(backlog=1000, name=f"{socket.gethostname()}:{os.getpid()}")
    settings.update(group="ndjson_workers", takeover=15)
    settings.update(options)
    settings["holder"] = settings["name"]
    if settings["stream"]:  # só deste processo
        settings["holder"] = "{group} {name} ".format(**settings) + f"{uuid.uuid4()} "
    stop = stop or threading.Event()

    def obey(number, _frame):
        """Anota a ordem de parar; um segundo sinal mata na hora."""
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, obey)
    try:
        if settings["takeover"] < 2 or re.search(r"\s", settings["group"]):
            raise ValueError("takeover: ao menos 2 s; group: sem espaços")
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
